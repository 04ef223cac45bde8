"""What has been measured, in a file: a plan that was interrupted goes on there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lutcc import __version__
from lutcc.errors import InputError
from lutcc.nn.fitted_layers import digest
from lutcc.planning.calibration import Calibration
from lutcc.runtime.files import write_text


class Cache:
    """Measurements by key, written at once; without a path, kept in memory only.

    Parameters
    ----------
    path
        A JSON file, or None.
    origin
        What the measurements are of, by name; those of another origin are refused.
    fresh
        Whether what is there already is thrown away.

    Raises
    ------
    InputError
        If the file is of another origin, or no such file.
    """

    def __init__(
        self, path: Path | None, origin: Mapping[str, str], *, fresh: bool = False
    ) -> None:
        self._path, self._origin = path, dict(origin)
        self._found: dict[str, Any] = {}
        if path is None or fresh or not path.exists():
            return
        fix = "use --fresh (fresh=True) to measure again, or name another output"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            origin, self._found = stored["origin"], stored["found"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"no measurements of a plan: {error}", where=str(path), fix=fix
            ) from error
        changed = [name for name, value in self._origin.items() if origin.get(name) != value]
        if changed:
            raise InputError(
                f"it holds measurements with another {', another '.join(changed)}",
                where=str(path),
                fix=fix,
            )

    def get(self, *key: str) -> Any:
        """Return what was kept under a key, or None."""
        return self._found.get("\n".join(key))

    def put(self, value: Any, *key: str) -> None:
        """Keep plain data."""
        self._found["\n".join(key)] = value
        if self._path is None:
            return
        text = json.dumps({"origin": self._origin, "found": self._found}, indent=1)
        write_text(self._path, text + "\n")


def origin_of(
    model: torch.nn.Module,
    calibration: Calibration,
    measure: str,
    target: str,
    threads: int | None = None,
) -> dict[str, str]:
    """Return what measurements depend on."""
    from lutcc.tuning.host import cpu_name

    weights = hashlib.sha256()
    for name, module in model.named_modules():
        weights.update(f"{name} {type(module).__qualname__}\n".encode())
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            weights.update(f"{name} {digest(value)}\n".encode())
    data = hashlib.sha256()
    for part in (calibration.fit, calibration.choose, calibration.check):
        data.update(b"part\n")
        for args, kwargs in part.batches:
            for value in (*args, *kwargs.values()):
                if isinstance(value, torch.Tensor):
                    data.update(digest(value).encode())
        if part.labels is not None:
            data.update(part.labels.astype("<i8").tobytes())
    return {
        "model": weights.hexdigest(),
        "calibration": data.hexdigest(),
        "batch": str(calibration.rows),
        "measure": measure,
        "target": target,
        "number of threads": "all" if threads is None else str(threads),
        "processor": cpu_name(),
        "version of lutcc": __version__,
    }
