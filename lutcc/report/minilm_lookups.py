"""Look-ups in all-MiniLM-L6-v2: the table, the picture and the log of what they keep and gain.

Results are plain data of one machine: ``machine`` (a line), ``rest`` (what is not replaced is
computed in it), ``exact`` (by precision, an :class:`~lutcc.report.embeddings.EmbeddingAgreement` as
a dictionary), ``runs`` (``name``, ``steps``, ``converted`` and ``distilled``, both such a
dictionary, ...), ``times`` (by shape and name: best and median milliseconds) and, if not the
wall's, the ``clock`` that they are of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lutcc.bench.readme import markdown_table
from lutcc.report.accuracy_log import AccuracyRun, append_run
from lutcc.report.figure_style import LIGHT, open_figure

PRECISIONS = {"float32": "exact-fp32", "bfloat16": "exact-bf16", "int8": "exact-int8"}
"""Of the exact networks, and their names in a log of accuracies."""
FFN = "LookupFFN"
_QUALITY = ("cosine", "cosine_p5", "top1", "top10")
_HEADER = ["", "cosine, converted", "cosine", "least 5 %", "same nearest", "same ten nearest"]

Results = dict[str, Any]


def machine_of(results: Results) -> str:
    """Return the processor's name and level, without versions.

    Examples
    --------
    >>> machine_of({"machine": "AMD EPYC (avx2), one core, lutcc 0.1.0"})
    'AMD EPYC (avx2)'
    """
    return results["machine"].split(",")[0]


def kept_beside(page: Path) -> list[Results]:
    """Return the results that a page was written from, one of each machine, the newest first."""
    path = page.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def with_others(results: Results, kept: Sequence[Results]) -> list[Results]:
    """Return the results, and after them those kept of other machines.

    Examples
    --------
    >>> old = [{"machine": "A, 0.1"}, {"machine": "B, 0.1"}]
    >>> with_others({"machine": "B, 0.2"}, old)
    [{'machine': 'B, 0.2'}, {'machine': 'A, 0.1'}]
    """
    own = machine_of(results)
    return [results, *(other for other in kept if machine_of(other) != own)]


def block(every: Sequence[Results]) -> str:
    """Return a table of each machine's results, under its name."""
    parts = []
    for results in every:
        others = [other for other in every if other is not results]
        parts.append(f"{machine_of(results)}:\n\n{table(results, others)}")
    return "\n\n".join(parts)


def fastest_exact(times: dict[str, Sequence[float]]) -> float:
    """Return the best time of the fastest exact network."""
    return min(times[f"exact, {precision}"][0] for precision in PRECISIONS)


def table(results: Results, others: Sequence[Results] = ()) -> str:
    """Return quality and times as Markdown; each time against the fastest exact one.

    Networks that were distilled on ``others`` for more steps lend their quality to the times here.
    """
    times, exact = results["times"], results.get("exact", {})
    rows = []
    for precision in PRECISIONS:
        found = exact.get(precision)
        quality = [""] * 4 if found is None else [f"{found[key]:.3f}" for key in _QUALITY]
        cells = [f"{by_name[f'exact, {precision}'][0]:.2f}" for by_name in times.values()]
        rows.append([f"exact, {precision}", "", *quality, *cells])
    lent = list(_lent(results, others))
    known = {name for _, name, _ in lent}
    for run, name, label in [*_own(results), *lent]:
        rows.append([label, *_measured(run), *_against(times, name)])
    for name in results.get("untrained", []):
        if name not in known:
            rows.append([f"{name}, not distilled", *[""] * 5, *_against(times, name)])
    header = [*_HEADER, *(f"{shape}, ms" for shape in times)]
    return f"{markdown_table(header, rows)}\n\n{_note(results, bool(lent))}"


def _measured(run: dict[str, Any]) -> list[str]:
    distilled = [f"{run['distilled'][key]:.3f}" for key in _QUALITY]
    return [f"{run['converted']['cosine']:.3f}", *distilled]


def _against(times: dict[str, Any], name: str) -> list[str]:
    """Return a network's times, and what they are of the fastest exact one's."""
    cells = []
    for by_name in times.values():
        ratio = fastest_exact(by_name) / by_name[name][0]
        said = f"{ratio:.2f}x" if ratio >= 1 else f"a loss, {1 / ratio:.2f}x slower"
        cells.append(f"{by_name[name][0]:.2f}, {said}")
    return cells


Row = tuple[dict[str, Any], str, str]
"""A run, the name that its times have, and what the table calls it."""


def _own(results: Results) -> Iterator[Row]:
    """Return the runs, with their steps where these differ."""
    differ = len({run["steps"] for run in results["runs"]}) > 1 or "untrained" in results
    for run in results["runs"]:
        label = f"{run['name']}, {run['steps']} steps" if differ else run["name"]
        yield run, run["name"], label


def _lent(results: Results, others: Sequence[Results]) -> Iterator[Row]:
    """Return each network's longest run of other machines, where it was longer than any here."""
    steps = {run["name"]: run["steps"] for run in results["runs"]}
    timed = next(iter(results["times"].values()))
    longest: dict[str, dict[str, Any]] = {}
    for other in others:
        for run in other["runs"]:
            name = run["name"]
            if name in timed and run["steps"] > steps.get(name, 0):
                longest[name], steps[name] = run, run["steps"]
    for name, run in longest.items():
        yield run, name, f"{name}, {run['steps']} steps, lent"


def _note(results: Results, lent: bool) -> str:
    first = results["runs"][0]
    seconds = ", ".join(
        f"{r['name']} {r['steps']} steps, {r['distil_s']:.0f} s" for r in results["runs"]
    )
    floats = [
        f"{run['name']} {run['steps']} steps, {run['distilled_float32']['cosine']:.3f}"
        for run in results["runs"]
        if "distilled_float32" in run
    ]
    clock = f"; times of a call are the {results['clock']}" if "clock" in results else ""
    with_floats = f" (cosine with the rest in float32: {', '.join(floats)})" if floats else ""
    borrowed = (
        " Lent rows have their quality from another machine's table, and the time of a "
        "network of the same sizes here."
        if lent
        else ""
    )
    return (
        f"What is not replaced is computed in {results['rest']}{with_floats}. Distilled on "
        f"{first['lessons']} sentences, {first['batch_size']} a step, CPU seconds of one thread on "
        f"a shared machine: {seconds}; judged on {first['distilled']['sentences']} held-out "
        f"sentences.{borrowed} {results['machine']}{clock}."
    )


#: Of a picture: name, marker, and whether points are joined.
_KINDS = (
    ("feed-forward layers as trees", "o", True),
    ("attention's projections too", "^", False),
    (FFN, "s", False),
)
#: Their names in a log of accuracies.
METHODS = ("finetuned", "finetuned-attention", "lookup-ffn")


def _kind(name: str) -> tuple[str, str, bool]:
    return _KINDS[2] if name == FFN else _KINDS[name.count("-") - 1]


def draw(every: Sequence[Results], path: Path) -> None:
    """Draw the first results' cosine against time, a panel for each shape.

    Exact networks and curves of look-ups. Hollow are those whose quality the others lend: of the
    same sizes, distilled on another machine, and longer than here if they were here.
    """
    results = every[0]
    lent = list(_lent(results, every[1:]))
    with open_figure(9.0, 4.4) as figure:
        panels = figure.subplots(1, len(results["times"]), sharey=True, squeeze=False)[0]
        for axes, (shape, by_name) in zip(panels, results["times"].items(), strict=True):
            for place, (precision, found) in enumerate(results["exact"].items()):
                axes.plot(
                    by_name[f"exact, {precision}"][0], found["cosine"], marker="D", markersize=7,
                    linestyle="none", color=LIGHT[f"safe{place}"], label=f"exact, {precision}",
                )  # fmt: skip
            for kind in _KINDS:
                _points(axes, by_name, kind, list(_own(results)))
            _hollow(axes, by_name, lent, {run["name"] for run in results["runs"]})
            axes.axvline(
                fastest_exact(by_name), color=LIGHT["muted"], linewidth=0.8, linestyle=":",
                label="time of the fastest exact",
            )  # fmt: skip
            axes.margins(0.16, 0.14)
            axes.set(title=f"{shape} tokens, one core", xlabel="milliseconds")
        panels[0].set_ylabel("cosine of embeddings")
        found = panels[0].get_legend_handles_labels()
        figure.legend(*found, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(machine_of(results), fontsize=9)
        figure.savefig(path, dpi=130)


def _points(
    axes: Any, by_name: dict[str, Any], kind: tuple[str, str, bool], rows: Sequence[Row]
) -> None:
    """Draw the networks of a kind, with their names: on a curve below it, others above."""
    title, marker, joined = kind
    own = [
        (by_name[name][0], run["distilled"]["cosine"], run)
        for run, name, _ in rows
        if _kind(name) == kind
    ]
    if not own:
        return
    own.sort(key=lambda point: point[0])
    axes.plot(
        [ms for ms, *_ in own], [cosine for _, cosine, _ in own], marker=marker, linewidth=0.8,
        linestyle="-" if joined else "none", color=LIGHT["ink"], label=title,
    )  # fmt: skip
    names = Counter(run["name"] for *_, run in own)
    for ms, cosine, run in own:
        steps = f", {run['steps']} steps" if names[run["name"]] > 1 else ""
        _named(axes, run["name"] + steps, (ms, cosine), below=joined)


def _named(axes: Any, name: str, point: tuple[float, float], *, below: bool) -> None:
    """Write a network's name beside its point."""
    offset = (6, -9) if below else (7, 3)
    axes.annotate(name, point, xytext=offset, textcoords="offset points", fontsize=7)


def _hollow(
    axes: Any, by_name: dict[str, Any], rows: Sequence[Row], named: Collection[str]
) -> None:
    """Draw the networks whose quality is lent, with the names that are not there yet."""
    label: str | None = "distilled on another machine"
    for run, name, _ in rows:
        _, marker, joined = _kind(name)
        point = by_name[name][0], run["distilled"]["cosine"]
        axes.plot(
            *point, marker=marker, linestyle="none", color=LIGHT["ink"], markerfacecolor="none",
            label=label,
        )  # fmt: skip
        if name not in named:
            _named(axes, name, point, below=joined)
        label = None


def record(results: Results, log: Path, task: str = "sentences") -> None:
    """Append the exact networks and those of look-ups, a line for each shape, to a log.

    ``lutcc report accuracy`` shows it: the exact networks' own cosines and times are the measure.
    """
    entries = [
        (f"exact, {precision}", PRECISIONS[precision], {}, None, found["cosine"])
        for precision, found in results["exact"].items()
    ]
    for run in results["runs"]:
        method = METHODS[_KINDS.index(_kind(run["name"]))]
        setting = {"codebooks": run["name"]}
        cosine = run["distilled"]["cosine"]
        entries.append((run["name"], method, setting, run["steps"], cosine))
    for shape, by_name in results["times"].items():
        for name, method, setting, steps, cosine in entries:
            append_run(log, AccuracyRun(
                task=task, model="all-MiniLM-L6-v2", metric="cosine", seed=0, exact=1.0,
                method=method, setting=setting, steps=steps, value=cosine,
                rows=int(shape.split(" x ")[1]), time_us=by_name[name][0] * 1e3,
                machine=machine_of(results),
            ))  # fmt: skip
