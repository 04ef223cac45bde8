"""The part of ``artifact.explain()`` about look-ups that feed look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LookupRow:
    """What becomes of the outputs of one layer of look-ups, or of an exact one in front of trees.

    Attributes
    ----------
    region
        Of a mixed model, the region that the layer is in; "" in others.
    layer
        Its name in the model.
    value
        The name of its outputs in the module's text.
    integers
        Whether they stay integer sums up to the trees that read them.
    columns, computed
        How many outputs there are, and how many are computed: no tree compares the others.
    behind
        What stands between them and their readers.
    reason
        Why they become floats; of integers, how trees read them.
    cut
        Whether a chain ends here that might have gone on: other look-ups come later.
    """

    region: str
    layer: str
    value: str
    integers: bool
    columns: int
    computed: int
    behind: tuple[str, ...]
    reason: str
    cut: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "behind": list(self.behind)}


def lookup_rows(extra: Mapping[str, Any]) -> tuple[LookupRow, ...]:
    """Return the rows that an artifact stores; ``extra`` may hold anything, or none."""
    listed = extra.get("lookups")
    rows = []
    for item in listed if isinstance(listed, list) else []:
        try:
            rows.append(
                LookupRow(
                    str(item.get("region", "")),
                    str(item["layer"]),
                    str(item["value"]),
                    bool(item["integers"]),
                    int(item["columns"]),
                    int(item["computed"]),
                    tuple(map(str, item["behind"])),
                    str(item["reason"]),
                    bool(item["cut"]),
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return tuple(rows)


def lookup_lines(rows: Sequence[LookupRow]) -> list[str]:
    r"""Return the rows as a table of text, under a line that sums them up.

    Examples
    --------
    >>> row = LookupRow("", "0", "acc", True, 512, 241, ("relu",), "a tree compares them", False)
    >>> print("\n".join(lookup_lines([row])))
    look-ups  1 of 1 layers stay in integers, 271 of 512 outputs are not computed
        layer  outputs  computed  as        behind  why
        0          512       241  integers  relu    a tree compares them
    """
    if not rows:
        return []
    whole, kept = sum(row.columns for row in rows), sum(row.computed for row in rows)
    integers, cuts = sum(row.integers for row in rows), sum(row.cut for row in rows)
    summary = f"look-ups  {integers} of {len(rows)} layers stay in integers"
    summary += f", {whole - kept:,} of {whole:,} outputs are not computed"
    if cuts:
        summary += f"; {cuts} cut short, marked !"
    cells = [("region", "layer", "outputs", "computed", "as", "behind", "why")]
    cells += [
        (
            row.region,
            row.layer,
            str(row.columns),
            str(row.computed),
            "integers" if row.integers else "float32",
            ", ".join(row.behind),
            row.reason,
        )
        for row in rows
    ]
    if not any(row.region for row in rows):
        cells = [line[1:] for line in cells]
    numbers = {cells[0].index("outputs"), cells[0].index("computed")}
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = ["", *("!" if row.cut else "" for row in rows)]
    lines = [summary]
    for mark, line in zip(marks, cells, strict=True):
        shown = (
            text.rjust(width) if index in numbers else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append(f"  {mark:1} {'  '.join(shown)}".rstrip())
    return lines
