"""Look-ups in all-MiniLM-L6-v2: the table, the picture and the log of what they keep and gain.

Results are plain data of one machine: ``machine`` (a line), ``rest`` (what is not replaced is
computed in it), ``exact`` (by precision, an :class:`~lutcc.report.embeddings.EmbeddingAgreement` as
a dictionary), ``runs`` (``name``, ``steps``, ``converted`` and ``distilled``, both such a
dictionary, ...) and ``times`` (by shape and name: best and median milliseconds).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
    return "\n\n".join(f"{machine_of(each)}:\n\n{table(each)}" for each in every)


def fastest_exact(times: dict[str, Sequence[float]]) -> float:
    """Return the best time of the fastest exact network."""
    return min(times[f"exact, {precision}"][0] for precision in PRECISIONS)


def table(results: Results) -> str:
    """Return quality and times as Markdown; each time against the fastest exact one."""
    times, exact = results["times"], results.get("exact", {})
    rows = []
    for precision in PRECISIONS:
        found = exact.get(precision)
        quality = [""] * 4 if found is None else [f"{found[key]:.3f}" for key in _QUALITY]
        cells = [f"{by_name[f'exact, {precision}'][0]:.2f}" for by_name in times.values()]
        rows.append([f"exact, {precision}", "", *quality, *cells])
    for run, label in _labelled(results):
        cells = [f"{run['converted']['cosine']:.3f}"]
        cells += [f"{run['distilled'][key]:.3f}" for key in _QUALITY]
        for by_name in times.values():
            ratio = fastest_exact(by_name) / by_name[run["name"]][0]
            said = f"{ratio:.2f}x" if ratio >= 1 else f"a loss, {1 / ratio:.2f}x slower"
            cells.append(f"{by_name[run['name']][0]:.2f}, {said}")
        rows.append([label, *cells])
    header = [*_HEADER, *(f"{shape}, ms" for shape in times)]
    return f"{markdown_table(header, rows)}\n\n{_note(results)}"


def _labelled(results: Results) -> Iterator[tuple[dict[str, Any], str]]:
    """Return the runs and their names, with their steps where these differ."""
    differ = len({run["steps"] for run in results["runs"]}) > 1
    for run in results["runs"]:
        yield run, f"{run['name']}, {run['steps']} steps" if differ else run["name"]


def _note(results: Results) -> str:
    first = results["runs"][0]
    seconds = ", ".join(
        f"{r['name']} {r['steps']} steps, {r['distil_s']:.0f} s" for r in results["runs"]
    )
    floats = [
        f"{run['name']} {run['distilled_float32']['cosine']:.3f}"
        for run in results["runs"]
        if "distilled_float32" in run
    ]
    with_floats = f" (cosine with the rest in float32: {', '.join(floats)})" if floats else ""
    return (
        f"What is not replaced is computed in {results['rest']}{with_floats}. Distilled on "
        f"{first['lessons']} sentences, {first['batch_size']} a step, CPU seconds of one thread on "
        f"a shared machine: {seconds}; judged on {first['distilled']['sentences']} held-out "
        f"sentences. {results['machine']}."
    )


def draw(results: Results, path: Path) -> None:
    """Draw cosine against time, a panel for each shape: exact networks, and curves of look-ups."""
    with open_figure(9.0, 4.0) as figure:
        panels = figure.subplots(1, len(results["times"]), sharey=True, squeeze=False)[0]
        for axes, (shape, by_name) in zip(panels, results["times"].items(), strict=True):
            for place, (precision, found) in enumerate(results["exact"].items()):
                axes.plot(
                    by_name[f"exact, {precision}"][0], found["cosine"], marker="D", markersize=7,
                    linestyle="none", color=LIGHT[f"safe{place}"], label=f"exact, {precision}",
                )  # fmt: skip
            for kind, marker, joined in _KINDS:
                own = [
                    (by_name[run["name"]][0], run["distilled"]["cosine"], run["name"])
                    for run in results["runs"]
                    if _kind(run["name"]) == kind
                ]
                if not own:
                    continue
                axes.plot(
                    [ms for ms, *_ in own], [cosine for _, cosine, _ in own], marker=marker,
                    linestyle="-" if joined else "none", linewidth=0.8, color=LIGHT["ink"],
                    label=kind,
                )  # fmt: skip
                for ms, cosine, name in own:
                    axes.annotate(name, (ms, cosine), xytext=(0, -11), ha="center",
                                  textcoords="offset points", fontsize=7)  # fmt: skip
            axes.axvline(fastest_exact(by_name), color=LIGHT["muted"], linewidth=0.8, linestyle=":",
                         label="the fastest exact network's time")  # fmt: skip
            axes.margins(0.14, 0.12)
            axes.set(title=f"{shape} tokens, one core", xlabel="milliseconds")
        panels[0].set_ylabel("cosine of embeddings")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(machine_of(results), fontsize=9)
        figure.savefig(path, dpi=130)


#: Of a picture: name, marker, and whether points are joined.
_KINDS = (
    ("feed-forward layers as trees", "o", True),
    ("attention's projections too", "^", False),
    (FFN, "s", False),
)


def _kind(name: str) -> str:
    return _KINDS[2][0] if name == FFN else _KINDS[name.count("-") - 1][0]


def record(results: Results, log: Path, task: str = "sentences") -> None:
    """Append the exact networks and those of look-ups, a line for each shape, to a log.

    ``lutcc report accuracy`` shows it: the exact networks' own cosines and times are the measure.
    """
    entries = [
        (f"exact, {precision}", PRECISIONS[precision], {}, None, found["cosine"])
        for precision, found in results["exact"].items()
    ]
    for run in results["runs"]:
        method = "lookup-ffn" if run["name"] == FFN else "finetuned"
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
