"""The log of training runs: JSON lines, each written at once, so that nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutcc.errors import LogError


class LossLog:
    """Appends records of several models to one file.

    A record has ``model``, ``step`` (steps done) and either ``loss`` (with ``rate`` and
    ``seconds``) or ``log_perplexity``.

    Parameters
    ----------
    path
        The file; made at the first record.

    Raises
    ------
    LogError
        If the file cannot be read or written, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, **record: Any) -> None:
        """Append one record."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise LogError(
                f"cannot write: {error}",
                where=str(self.path),
                fix="choose a folder that can be written to",
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """Return all records; a last line that was cut off is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if not {"model", "step"} <= record.keys():
                    raise ValueError(f"it has {', '.join(record)}")
            except (ValueError, AttributeError) as error:
                if number == len(lines):
                    break
                raise LogError(
                    f"is no record of a training run: {error}",
                    where=f"{self.path}:{number}",
                    fix="choose another output folder, or delete this line",
                ) from error
            records.append(record)
        return records

    def forget(self, model: str, after: int) -> None:
        """Drop a model's records beyond a step: a run that goes on from there writes them again."""
        if not self.path.exists():
            return
        kept = [r for r in self.read() if r["model"] != model or r["step"] <= after]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if text == self.path.read_text(encoding="utf-8"):
            return  # another run may be writing to it
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.path)


def curve(
    records: Sequence[dict[str, Any]], model: str, what: str
) -> tuple[list[int], list[float]]:
    """Return steps and values of a model's ``what`` (``loss`` or ``log_perplexity``).

    Examples
    --------
    >>> curve([{"model": "a", "step": 10, "loss": 3.5}], "a", "loss")
    ([10], [3.5])
    """
    rows = [(r["step"], r[what]) for r in records if r["model"] == model and what in r]
    return [step for step, _ in rows], [value for _, value in rows]
