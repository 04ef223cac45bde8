"""Show what an artifact or an IR module holds: IR, costs, tables, layouts, kernels.

MODEL is an artifact, an IR module (.ir), or what `lutcc compile` imports first: an exported torch
program (.pt2), a folder in Hugging Face's layout, package.module:factory. An artifact made for
another CPU can be inspected too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lutcc.cli.arrays import existing_file
from lutcc.cli.compile_source import DEFAULT_LENGTH, check_options
from lutcc.cli.console import Console
from lutcc.cli.models import is_factory, kind_of
from lutcc.cli.source_options import add_source_options, import_source, length_of
from lutcc.errors import UsageError

if TYPE_CHECKING:
    from lutcc import ir
    from lutcc.runtime import Artifact

_COUNTS = ("lookups", "comparisons", "flops", "bytes_read", "bytes_written", "table_bytes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file and what to show of it."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "-n", "--rows", type=int, default=1024, help="batch size of the costs (1024)"
    )
    parser.add_argument("--optimized", action="store_true", help="the IR after all passes")
    parser.add_argument("--ir", action="store_true", help="print the IR text alone")
    add_source_options(
        parser,
        length_of,
        f"tokens of a row of a Hugging Face folder's model; a name leaves it open "
        f"({DEFAULT_LENGTH})",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Print everything that is known of the file."""
    if args.rows < 1:
        raise UsageError(f"{args.rows} is no batch size", where="--rows", fix="at least 1")
    made = is_factory(args.model)
    path = Path(args.model) if made else existing_file(args.model, "MODEL")
    kind = "factory" if made else kind_of(path)
    data: dict[str, Any] = {"file": str(path), "kind": kind}
    shown: list[Any] = []
    texts: dict[str, str] = {}
    if kind == "artifact":
        check_options(args, "artifact")
        from lutcc.runtime import Artifact

        artifact = Artifact.read(path)
        data |= {"artifact": artifact.explain().to_dict(), "files": _files(artifact)}
        shown += [str(artifact.explain()), _files_table(artifact), *_packing(artifact, data)]
        modules = {"main": artifact.module} if artifact.kind == "ir" else {}
        texts = _region_texts(artifact)
    else:
        modules = _modules(import_source(args, console))
    data["modules"] = {}
    for name, module in modules.items():
        facts, tables = _module_facts(module, args)
        data["modules"][name] = facts
        if args.ir:
            shown = [facts["ir"]] if name == next(iter(modules)) else [*shown, facts["ir"]]
        else:
            shown += tables
    for name, text in texts.items():
        data["modules"][name] = {"ir": text}
    if texts and args.ir:
        shown = list(texts.values())
    console.result(data, *shown)
    return 0


def _region_texts(artifact: Artifact) -> dict[str, str]:
    """Return the IR text of each region of a mixed model; its constants are stored packed only."""
    if artifact.kind == "ir":
        return {}
    texts = {name: artifact.module_text(name) for name in artifact.manifest.modules}
    return {n.removesuffix(".ir"): t for n, t in texts.items() if t.startswith("lutcc.ir")}


def _modules(source: Any) -> dict[str, ir.Module]:
    """Return the modules of an IR module or an imported model."""
    from lutcc.ir.module import Module

    if isinstance(source, Module):
        return {"main": source}
    if source.module is not None:
        return {"main": source.module}
    return {region.name: region.module for region in source.regions}


def _module_facts(module: ir.Module, args: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Return a module's IR text, costs, constants and layouts, as data and as what to print."""
    from lutcc import ir
    from lutcc.ir import passes

    optimized = module
    for step in passes.PIPELINE:
        optimized = step(optimized)
    text = ir.to_text(optimized if args.optimized else module, elide_constants=True)
    cost = ir.cost(module, n=args.rows)
    layouts = [
        {"function": function.name, "value": value.name, "type": str(value.type)}
        for function in optimized.functions
        for op in function.body
        for value in op.results
        if value.type.layout != ir.ROW_MAJOR
    ]
    constants = [
        {"name": name, "dtype": a.dtype.name, "shape": list(a.shape), "bytes": a.nbytes,
         "sha256": ir.constant_digest(a)}
        for name, a in module.constants.items()
    ]  # fmt: skip
    rows = [
        {"function": r.function, "op": r.opcode, "result": r.result}
        | {name: getattr(r.cost, name) for name in _COUNTS}
        for r in cost.rows
        if r.opcode != "constant"
    ]
    total = {name: getattr(cost.total, name) for name in _COUNTS}
    facts = {"ir": text, "cost": {"rows": args.rows, "ops": rows, "total": total}}
    facts |= {"constants": constants, "layouts": layouts}

    costs = Table(title=f"cost of {args.rows} rows", title_justify="left", box=None, pad_edge=False)
    for column in ("op", "result", *(name.replace("_", " ") for name in _COUNTS)):
        costs.add_column(column, justify="left" if column in ("op", "result") else "right")
    for row in rows:
        costs.add_row(
            row["op"], row["result"].replace("[", "\\["), *(f"{row[c]:,}" for c in _COUNTS)
        )
    costs.add_row("total", "", *(f"{total[c]:,}" for c in _COUNTS), style="bold")
    tables = Table(title="constants", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "dtype", "shape", "bytes", "sha256"):
        tables.add_column(column, justify="right" if column == "bytes" else "left")
    for c in constants:
        shape = " x ".join(map(str, c["shape"]))
        tables.add_row(c["name"], c["dtype"], shape, f"{c['bytes']:,}", c["sha256"][:12])
    lines = [
        f"layouts that the passes chose (all others are row-major){':' if layouts else ': none'}"
    ]
    lines += [f"  {entry['function']}: %{entry['value']}: {entry['type']}" for entry in layouts]
    return facts, [text, costs, tables, "\n".join(lines)]


def _files(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": entry.size, "sha256": entry.sha256}
        for name, entry in artifact.manifest.files.items()
    ]


def _files_table(artifact: Artifact) -> Table:
    table = Table(title="files", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "bytes", "sha256"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for entry in _files(artifact):
        table.add_row(entry["name"], f"{entry['bytes']:,}", entry["sha256"][:12])
    return table


def _packing(artifact: Artifact, data: dict[str, Any]) -> list[Table]:
    """Return a table, per variant, of how its constants are laid out for its kernels."""
    tables = []
    data["packing"] = {}
    for variant in artifact.manifest.variants:
        if variant.program is None:
            continue
        table = Table(
            title=f"packed for {variant.isa}", title_justify="left", box=None, pad_edge=False
        )
        for column in ("layout", "of", "parameters", "bytes"):
            table.add_column(column, justify="right" if column == "bytes" else "left")
        for part in variant.program["blob"]:
            parameters = ", ".join(f"{k}={_short(v)}" for k, v in part["params"].items())
            table.add_row(
                part["pack"], ", ".join(part["sources"]), parameters, f"{part['nbytes']:,}"
            )
        data["packing"][variant.isa] = variant.program["blob"]
        tables.append(table)
    return tables


def _short(value: Any) -> str:
    """Return a parameter of a layout; of a long list only how long it is."""
    if isinstance(value, list) and len(value) > 8:
        return f"[{value[0]}, {value[1]}, ... {len(value)} in all]"
    return str(value)
