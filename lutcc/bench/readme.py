"""Measures again and rewrites the figures in README.md: ``python -m lutcc.bench.readme README.md``.

Runs ``lutcc demo --json``, ``lutcc bench layers --json``, the same of ``ffn``, ``sampled`` and
``codebook``, and ``lutcc report tuning --json`` (of the shipped logs, in the current folder) and
puts their tables between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lutcc.errors import UsageError
from lutcc.report.tables import microseconds, number, pretty

#: The logs that come with lutcc.
SHIPPED = "tuning_logs"


def measure(*arguments: str) -> dict[str, Any]:
    """Run a lutcc command with ``--json`` and return what it printed."""
    command = [sys.executable, "-m", "lutcc.cli.main", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned.

    Examples
    --------
    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | ---: |
    | 1 | 2 |
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def layers_block(data: dict[str, Any]) -> str:
    """Return the table of whole layers: best microseconds of each precision, and the verdicts."""
    rows = data["sections"]["layers"]
    amx = any(label.endswith("/amx") for label in rows[0]["times"])
    families = ["fp32", "bf16", "int8"]
    columns = [("fp32", "")] + [
        (f, s) for f in families[1:] for s in (("/amx", "") if amx else ("",))
    ]
    header = ["N x D x M, codebooks", "lutcc"]
    header += [f"{f}, AMX" if s else f for f, s in columns] + ["against the fastest"]
    header += ["without AMX"] if amx else []
    body = []
    for row in rows:
        times = {label: timing["best"] * 1e6 for label, timing in row["times"].items()}
        cells = [f"{row['N']} x {row['D']} x {row['M']}, {row['C']}", number(times["lutcc"])]
        for family, suffix in columns:  # the faster of torch's engines and kinds of input
            found = [
                time
                for label, time in times.items()
                if label.startswith(family) and label.endswith("/amx") == bool(suffix)
            ]
            cells.append(number(min(found)))
        cells.append(f"{row['speedup']:.2f}x")
        body.append([*cells, f"{row['speedup_without_amx']:.2f}x"] if amx else cells)
    return markdown_table(header, body) + "\n\n" + _caption(data["machine"])


def demo_block(data: dict[str, Any]) -> str:
    """Return the demonstration's table of whole models."""
    amx = "amx_int8" in data["machine"]["flags"]
    batches = list(data["models"][0]["times"])
    header = ["model", "accuracy", "bytes", *(f"batch {batch}" for batch in batches)]
    body = [
        [pretty(row["label"], amx_cpu=amx), f"{row['accuracy']:.4f}",
         f"{row.get('table_bytes', row['bytes']):,}",
         *(microseconds(row["times"][batch]) for batch in batches)]
        for row in data["models"]
    ]  # fmt: skip
    return markdown_table(header, body) + "\n\n" + _caption(data["machine"])


def tuning_block(data: dict[str, Any]) -> str:
    """Return the table of what tuning gained on the shipped workloads, by level and family."""
    header = ["level", "kernels", "of them faster than the default", "gain, geometric mean"]
    body = []
    for target in data["targets"]:
        groups = target["by_family"]
        rows = [
            (target["isa"], sum(g["kernels"] for g in groups), target["kernels_faster"]),
            *((f"- {g['label']}", g["kernels"], g["faster"]) for g in groups),
        ]
        gains = [target["gain"], *(g["gain"] for g in groups)]
        body += [
            [label, str(kernels), str(faster), f"{gain:.2f}x"]
            for (label, kernels, faster), gain in zip(rows, gains, strict=True)
        ]
    models = sorted({f"{t['model']} ({t['cpu']})" for t in data["targets"]})
    return markdown_table(header, body) + f"\n\n{', '.join(models)}, one core."


def ffn_block(data: dict[str, Any]) -> str:
    """Return the table of feed-forward blocks: times, verdicts, errors, two cores."""
    from lutcc.bench.ffn_report import ffn_cells, ffn_header, notes

    rows = data["sections"]["ffn"]["blocks"]
    table = markdown_table(ffn_header(rows), [ffn_cells(row, rows) for row in rows])
    return f"{table}\n\n{_caption(data['machine'])} {notes(rows)}"


def hadamard_block(data: dict[str, Any]) -> str:
    """Return the table of Hadamard transforms against a memcpy of the same bytes."""
    header = ["transform", "level", "microseconds", "of a memcpy's time"]
    body = [
        [row["workload"], row["isa"], number(row["best"] * 1e6), f"{1 / row['share']:.2f}x"]
        for row in data["sections"]["ffn"]["hadamard"]
    ]
    return markdown_table(header, body) + "\n\n" + _caption(data["machine"])


def sampled_block(data: dict[str, Any]) -> str:
    """Return the table of sampled products: milliseconds, and what they gain or lose."""
    from lutcc.bench.sampled_report import notes

    rows = data["sections"]["sampled"]
    header = ["N, K, M", "type, part taken", "lutcc", "index_select", "dense float32", "int8"]
    header += ["forward: of dense float32", "training step: of dense float32"]
    body = []
    for row in rows:
        times = {label: timing["best"] * 1e3 for label, timing in row["forward"].items()}
        exact = min(t for label, t in times.items() if label in ("fp32", "fp32_onednn"))
        int8 = min(t for label, t in times.items() if label.startswith("int8"))
        for found in row["verdicts"]:
            name = f"{found['dtype']} {found['ratio']:g}"
            cells = [times[f"lutcc {name}"], times[f"index_select {name}"], exact, int8]
            body.append(
                [
                    f"{row['N']}, {row['K']}, {row['M']}",
                    name.replace(" ", ", "),
                    *map(number, cells),
                    _share(found["share"]),
                    _share(1 / found["training"]),
                ]
            )
    caption = _caption(data["machine"]).replace("Microseconds", "Milliseconds")
    return markdown_table(header, body) + f"\n\n{caption} {notes(rows)}"


def codebook_block(data: dict[str, Any]) -> str:
    """Return the table of products with codebook weights: microseconds, and who is faster."""
    from lutcc.bench.codebook_report import HEADER, codebook_cells, notes

    rows = data["sections"]["codebook"]
    body = [line for row in rows for line in codebook_cells(row)]
    return markdown_table(HEADER, body) + f"\n\n{_caption(data['machine'])} {notes(rows)}"


def _share(part: float) -> str:
    """Return a part of another time; more than all of it is a loss.

    Examples
    --------
    >>> _share(0.517), _share(1.17)
    ('0.52', '1.17 (loss)')
    """
    return f"{part:.2f}" if part <= 1 else f"{part:.2f} (loss)"


def _caption(machine: dict[str, Any]) -> str:
    from lutcc.bench.machine import one_line

    return f"Microseconds. {one_line(machine)}."


def replace_block(text: str, name: str, block: str) -> str:
    r"""Put ``block`` between the markers of ``name``.

    Raises
    ------
    UsageError
        When the markers are missing.

    Examples
    --------
    >>> replace_block("<!-- x:begin -->old<!-- x:end -->", "x", "new")
    '<!-- x:begin -->\nnew\n<!-- x:end -->'
    """
    pattern = re.compile(rf"(<!-- {name}:begin -->).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise UsageError(f"no markers <!-- {name}:begin --> and <!-- {name}:end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def _measured_blocks(text: str) -> str:
    """Measure everything on this machine."""
    with tempfile.TemporaryDirectory(prefix="lutcc-readme-") as folder:
        text = replace_block(text, "demo", demo_block(measure("demo", "-o", folder)))
    text = replace_block(text, "layers", layers_block(measure("bench", "layers")))
    for family in ("ffn", "sampled", "codebook"):
        text = _bench_blocks(text, measure("bench", family))
    return text


def _bench_blocks(text: str, data: dict[str, Any]) -> str:
    """Put in the tables of the sections that a benchmark measured."""
    sections = data["sections"]
    if "ffn" in sections:
        text = replace_block(text, "ffn", ffn_block(data))
        text = replace_block(text, "hadamard", hadamard_block(data))
    if "sampled" in sections:
        text = replace_block(text, "sampled", sampled_block(data))
    if "codebook" in sections:
        text = replace_block(text, "codebook", codebook_block(data))
    return text


def main(argv: list[str] | None = None) -> int:
    """Measure and rewrite the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--logs-only", action="store_true", help="only what the tuning logs say")
    parser.add_argument(
        "--bench",
        type=Path,
        metavar="JSON",
        help="only what lutcc bench ffn, sampled or codebook wrote with -o JSON",
    )
    args = parser.parse_args(argv)
    text = args.file.read_text(encoding="utf-8")
    if args.bench is not None:
        text = _bench_blocks(text, json.loads(args.bench.read_text(encoding="utf-8")))
    else:
        text = replace_block(text, "tuning", tuning_block(measure("report", "tuning", SHIPPED)))
        if not args.logs_only:
            text = _measured_blocks(text)
    args.file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
