"""What replayed searches found, as numbers, a Markdown table and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.bench.machine import one_line
from lutcc.bench.replay import BATCH, Run, Table, replay
from lutcc.report.figure_style import plain_figure
from lutcc.tuning.records import Record
from lutcc.tuning.search import TINY

#: Trials at which shares are told.
AT = (4, 8, 16, 32)
#: Shares of the best whose first trial is told.
SHARES = (0.95, 0.98)


@dataclass(frozen=True)
class Variant:
    """A search as it is compared.

    Attributes
    ----------
    name, color
        In tables and pictures.
    search
        A key of :data:`lutcc.bench.replay.SEARCHES`.
    related
        ``""``; ``workloads``: it learns from the tables of the other workloads; ``level``: from
        those of another instruction-set level.
    """

    name: str
    search: str
    color: str
    related: str = ""


VARIANTS = (
    Variant("XGBoost", "metaschedule", "#1f77b4"),
    Variant("XGBoost, other workloads known", "metaschedule", "#2ca02c", "workloads"),
    Variant("XGBoost, another level known", "metaschedule", "#9467bd", "level"),
    Variant("XGBoost, evolutionary", "evolutionary", "#17becf"),
    Variant("random", "random", "#ff7f0e"),
    Variant("exhaustive", "exhaustive", "#7f7f7f"),
)
_STYLES = {"exhaustive": ":", "evolutionary": "--"}


def experiment(
    tables: Sequence[Table],
    others: Sequence[Table],
    *,
    seeds: int,
    trials: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Replay every variant on every table.

    Parameters
    ----------
    tables
        The workloads.
    others
        Tables of another instruction-set level, to learn from; may be empty.
    seeds, trials
        Runs of each search, and trials of a run.
    progress
        Told which workload is replayed.

    Returns
    -------
    dict
        ``workloads``: for each name its size and what each variant reached; ``summary``: the same
        over all runs; JSON values.
    """
    runs: dict[str, dict[str, list[Run]]] = {}
    for table in tables:
        progress(f"{table.name}: {len(table.relative)} configs replayed")
        runs[table.name] = {
            variant.name: [
                replay(table, variant.search, seed, trials, related)
                for seed in range(1 if variant.search == "exhaustive" else seeds)
            ]
            for variant in VARIANTS
            if (related := _related(variant, table, tables, others)) is not None
        }
    workloads = {
        table.name: {
            "op": table.workload.op,
            "rows": table.workload.rows,
            "isa": table.isa,
            "configs": len(table.relative),
            "failed": sum(r is None for r in table.relative.values()),
            "best_over_default": round(table.best, 4),
            "within_5_percent": sum(
                1 / r >= SHARES[0] * table.best for r in table.relative.values() if r
            ),
            "searches": {
                name: _summary(found, len(table.relative))
                for name, found in runs[table.name].items()
            },
        }
        for table in tables
    }
    names = [v.name for v in VARIANTS if any(v.name in found for found in runs.values())]
    summary = {
        name: _over_workloads([workloads[t]["searches"][name] for t in workloads])
        | _curves([run for found in runs.values() for run in found[name]])
        for name in names
    }
    return {
        "seeds": seeds,
        "trials": trials,
        "batch": BATCH,
        "workloads": workloads,
        "summary": summary,
        "transfer": {
            variant.name: _transfer(variant, tables, others, workloads)
            for variant in VARIANTS
            if variant.related and variant.name in summary
        },
    }


def _transfer(
    variant: Variant,
    tables: Sequence[Table],
    others: Sequence[Table],
    workloads: Mapping[str, Any],
) -> dict[str, Any]:
    """Compare a variant with the plain search where workloads of the same ops are known to it.

    Spaces so small that nothing is learnt of them are left out.
    """
    known = others if variant.related == "level" else tables
    names = [
        table.name
        for table in tables
        if len(table.relative) > TINY + 1
        and any(t is not table and t.workload.op == table.workload.op for t in known)
    ]
    result: dict[str, Any] = {"workloads": names}
    for key, name in (("without", VARIANTS[0].name), ("with", variant.name)):
        found = [workloads[table]["searches"][name] for table in names]
        result[key] = _over_workloads(found)["trials_to"] if found else {}
    return result


def _related(
    variant: Variant, table: Table, tables: Sequence[Table], others: Sequence[Table]
) -> list[Record] | None:
    """Return what a variant may learn from, or None if there is nothing of that sort."""
    if not variant.related:
        return []
    known = others if variant.related == "level" else [t for t in tables if t is not table]
    return [record for t in known for record in t.records] or None


def _curves(runs: Sequence[Run]) -> dict[str, Any]:
    low, middle, high = np.percentile([run.shares for run in runs], (20, 50, 80), axis=0)
    return {
        "p20": low.round(4).tolist(),
        "median": middle.round(4).tolist(),
        "p80": high.round(4).tolist(),
    }


def _summary(runs: Sequence[Run], configs: int) -> dict[str, Any]:
    proposals = min(len(runs[0].shares), configs - 1)
    return {
        "share_at": {
            str(n): round(float(np.median([run.shares[n - 1] for run in runs])), 4)
            for n in AT
            if n <= len(runs[0].shares)
        },
        "trials_to": {
            str(share): float(np.median([run.trials_to(share) for run in runs])) for share in SHARES
        },
        "seconds_per_proposal": round(float(np.mean([r.seconds for r in runs])) / proposals, 5),
        **_curves(runs),
    }


def _over_workloads(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians and means over workloads of what one search reached in each."""
    result: dict[str, Any] = {
        "seconds_per_proposal": round(float(np.mean([f["seconds_per_proposal"] for f in found])), 5)
    }
    for key in ("share_at", "trials_to"):
        result[key] = {
            n: {
                "median": round(float(np.median([f[key][n] for f in found])), 4),
                "mean": round(float(np.mean([f[key][n] for f in found])), 4),
            }
            for n in found[0][key]
        }
    return result


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``search.json``, ``search.md`` and ``search.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (folder / "search.json").write_text(text + "\n", encoding="utf-8")
    (folder / "search.md").write_text(markdown(result), encoding="utf-8")
    plot(folder / "search.png", result)


def markdown(result: Mapping[str, Any]) -> str:
    """Return the results as tables."""
    names = list(result["summary"])
    shown = [str(n) for n in AT if str(n) in result["summary"][names[0]]["share_at"]]
    lines = [
        "Best config found so far as a share of the best of all configs, after so many trials; the",
        "default, which every session measures first, is no trial. Medians over "
        f"{result['seeds']} seeds; {result['batch']} configs are proposed at a time.",
        "",
        _row("over all workloads", *(f"{n} trials" for n in shown), "to 95 %", "to 98 %", "ms"),
        _row("---", *["---:"] * (len(shown) + 3)),
    ]
    for name in names:
        found = result["summary"][name]
        to = [found["trials_to"][str(share)] for share in SHARES]
        lines.append(
            _row(
                name,
                *(f"{found['share_at'][n]['median']:.3f}" for n in shown),
                *(f"{t['median']:g} (mean {t['mean']:.1f})" for t in to),
                f"{1e3 * found['seconds_per_proposal']:.1f}",
            )
        )
    lines += ["", _row("workload", "configs", "best / default", *names)]
    lines.append(_row("---", *["---:"] * (len(names) + 2)))
    for workload, about in result["workloads"].items():
        cells = []
        for name in names:
            found = about["searches"].get(name)
            cells.append("" if found is None else _cell(found, shown[1:], result["trials"]))
        over = f"{about['best_over_default']:.2f}x"
        lines.append(_row(workload, str(about["configs"]), over, *cells))
    lines += [
        "",
        f"Each cell: share at {', '.join(shown[1:])} trials; trials to 95 %.",
        "",
        *(_transferred(name, found) for name, found in result["transfer"].items()),
        f"{one_line(result['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def _transferred(name: str, found: Mapping[str, Any]) -> str:
    if not found["workloads"]:
        return f"{name}: none of the same ops.\n"
    told = [
        f"{float(share):.0%} of the best after {found['with'][share]['median']:g} trials (mean "
        f"{found['with'][share]['mean']:.1f}), without them after "
        f"{found['without'][share]['median']:g} (mean {found['without'][share]['mean']:.1f})"
        for share in found["with"]
    ]
    count = len(found["workloads"])
    return f"{name}: where the same ops are known ({count} workloads), {'; '.join(told)}.\n"


def _cell(found: Mapping[str, Any], shown: Sequence[str], trials: int) -> str:
    shares = " ".join(f"{found['share_at'][n]:.2f}" for n in shown)
    to = found["trials_to"][str(SHARES[0])]
    return f"{shares}; {f'{to:g}' if to <= trials else f'> {trials}'}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a panel for each workload, and one over all."""
    workloads = result["workloads"]
    columns = min(4, len(workloads) + 1)
    count = len(workloads) + 1
    lines = math.ceil(count / columns)
    figure = plain_figure(4.2 * columns, 3.1 * lines + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    _panel(panels[0], f"all {len(workloads)} workloads", result["summary"], None)
    for panel, (name, about) in zip(panels[1:], workloads.items(), strict=False):
        title = f"{name}: {about['configs']} configs"
        _panel(panel, title, about["searches"], 1 / about["best_over_default"])
    for panel in panels[count:]:
        panel.set_visible(False)
    handles, labels = panels[min(1, count - 1)].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"Best config so far, share of the best of all (median, 20th to 80th percentile, "
        f"{result['seeds']} seeds)"
    )
    figure.savefig(path, dpi=110)


def _panel(panel: Any, title: str, found: Mapping[str, Any], default: float | None) -> None:
    for variant in VARIANTS:
        if variant.name not in found:
            continue
        curve = found[variant.name]
        trials = np.arange(1, len(curve["median"]) + 1)
        style = _STYLES.get(variant.search, "-")
        panel.plot(
            trials, curve["median"], color=variant.color, label=variant.name, linestyle=style
        )
        if variant.search in ("metaschedule", "random"):
            panel.fill_between(
                trials, curve["p20"], curve["p80"], color=variant.color, alpha=0.15, linewidth=0
            )
    panel.axhline(SHARES[0], color="black", linewidth=0.6, linestyle="--")
    if default is not None:
        panel.axhline(default, color="#d62728", linewidth=0.8, linestyle="-.", label="default")
    panel.set(title=title, xlabel="trials", ylabel="share of the best")
    panel.set_ylim(0.75, 1.01)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.title.set_fontsize(9)
    panel.grid(alpha=0.3)
