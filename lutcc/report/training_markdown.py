"""The numbers of a training report as Markdown, for documents."""

from __future__ import annotations

from lutcc.report.training_data import Method, Task, points, spread


def markdown(task: Task) -> str:
    """Return a table of a task's methods.

    Accuracies in percent with half of their 95 % confidence interval, differences to the exact
    method in points, run by run of the same seed.
    """
    exact = task.baseline.name if task.baseline else "exact"
    lines = [
        f"| method | seeds | accuracy, % | std | less {exact}, points | std | multiply-adds | "
        "loss at the end | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in task.methods:
        accuracy, gap = method.accuracy, method.difference
        cells = [method.name, str(len(method.runs)), points(accuracy)]
        cells.append(_std(accuracy))
        cells += [points(gap, "{:+.2f}".format), _std(gap)]
        cells.append("–" if method.compute is None else f"{method.compute:.0%}")
        cells.append("–" if method.loss is None else f"{method.loss.mean:.4f}")
        cells.append("–" if method.seconds is None else f"{method.seconds.mean:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(task: Task, one: str, others: list[str]) -> list[str]:
    """Return how a method compares with others, run by run of the same seed, a line for each.

    A difference is called one where its 95 % confidence interval leaves 0 out.
    """
    methods = {method.name: method for method in task.methods}
    lines = []
    for name in others:
        if one not in methods or name not in methods:
            continue
        found = spread(_gaps(methods[one], methods[name]))
        if found is None:
            continue
        sure = found.half is not None and abs(found.mean) > found.half
        verdict = "no difference beyond chance"
        if sure:
            verdict = "better" if found.mean > 0 else "worse"
        lines.append(f"{one} less {name}: {points(found, '{:+.2f}'.format)} points, {verdict}")
    return lines


def _gaps(one: Method, other: Method) -> list[float]:
    known = {run.seed: run.accuracy for run in other.runs}
    return [
        run.accuracy - before
        for run in one.runs
        if run.accuracy is not None and (before := known.get(run.seed)) is not None
    ]


def _std(found: object) -> str:
    std = getattr(found, "std", None)
    return "–" if std is None else f"{100 * std:.2f}"
