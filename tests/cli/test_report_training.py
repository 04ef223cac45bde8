"""`lutcc report training`: the numbers of logs, the page and the picture made of them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import sys
from pathlib import Path

import pytest
from scipy import stats

from lutcc.errors import DependencyError, LogError
from lutcc.report.figure_style import COLOURS
from lutcc.report.training_data import Task, summarise
from lutcc.report.training_figures import summary_png
from lutcc.report.training_page import page
from lutcc.train.runlog import RunRecord
from tests.cli.training_logs import METHODS, records, write
from tests.html_reader import Reader


@pytest.fixture(scope="module")
def made() -> list[RunRecord]:
    return [*records(), *records("distributed", seeds=3, traffic=True)]


@pytest.fixture(scope="module")
def tasks(made: list[RunRecord]) -> tuple[Task, ...]:
    return summarise(made)


@pytest.fixture(scope="module")
def html(tasks: tuple[Task, ...]) -> str:
    return page(tasks, sources=["runs.jsonl"], made="2026-11-25 10:00 UTC")


def finals(made: list[RunRecord], task: str, method: str) -> list[float]:
    """Return the accuracies at the end, by seed."""
    found = [r for r in made if (r.task, r.method, r.final) == (task, method, True)]
    return [r.accuracy or 0 for r in sorted(found, key=lambda r: r.seed)]


# -- the numbers ---------------------------------------------------------------------------


def test_means_spreads_and_differences(made, tasks):
    task = tasks[0]
    assert [m.name for m in task.methods] == list(METHODS)
    exact = finals(made, task.name, "exact")
    for method in task.methods:
        values = finals(made, task.name, method.name)
        assert method.accuracy.values == tuple(values)
        assert method.accuracy.mean == pytest.approx(statistics.fmean(values))
        assert method.accuracy.std == pytest.approx(statistics.stdev(values))
        low, high = stats.t.interval(0.95, 4, statistics.fmean(values), stats.sem(values))
        assert method.accuracy.half == pytest.approx((high - low) / 2)
        if method is task.baseline:
            assert method.difference is None
        else:
            gaps = [a - b for a, b in zip(values, exact, strict=True)]
            assert method.difference.values == pytest.approx(gaps)
            assert method.difference.std == pytest.approx(statistics.stdev(gaps))


def test_savings(tasks):
    for method in tasks[1].methods:
        assert method.compute == pytest.approx(METHODS[method.name][1])
        assert method.traffic == pytest.approx(METHODS[method.name][1])
    assert {m.traffic for m in tasks[0].methods} == {None}


def test_curves_are_means_over_seeds(made, tasks):
    method = tasks[0].methods[1]
    curve = method.curve("loss", by_epoch=True)
    assert curve.x == tuple(float(e) for e in range(1, 9))
    third = [r.loss for r in made if (r.task, r.method, r.epoch) == (tasks[0].name, method.name, 3)]
    assert curve.mean[2] == pytest.approx(statistics.fmean(third))
    assert (curve.low[2], curve.high[2]) == (min(third), max(third))
    assert method.curve("accuracy", by_epoch=False).x[0] == 19


def test_unfinished_runs_do_not_count(made):
    cut = [r for r in made if not (r.method == "topk 50%" and r.seed == 1 and r.step > 50)]
    cut = [r for r in cut if not (r.method == "crs 10%" and r.final)]
    task = summarise(cut)[0]
    assert [(m.name, len(m.runs), m.unfinished) for m in task.methods] == [
        ("exact", 5, 0),
        ("topk 50%", 4, 1),
    ]
    assert task.pending == ("crs 10%",)
    assert task.methods[1].difference.n == 4
    text = Reader(page((task,), sources=["x"], made="now")).text
    assert "1 unfinished" in text
    assert "Not finished: crs 10%" in text


def test_a_run_that_was_started_again_counts_once(made):
    first = [r for r in made if r.run == made[0].run]
    task = summarise([*first[:4], *made])[0]
    assert len(task.methods[0].runs[0].records) == len(first)


def test_logs_without_an_end_are_taken_as_they_are(made):
    bare = [dataclasses.replace(r, final=False) for r in made]
    assert len(summarise(bare)[0].methods[0].runs) == 5


def test_one_seed_has_no_spread():
    task = summarise(records(seeds=1))[0]
    accuracy, difference = task.methods[1].accuracy, task.methods[1].difference
    assert accuracy is not None
    assert difference is not None
    assert (accuracy.std, difference.half) == (None, None)
    text = Reader(page((task,), sources=["x"], made="now")).text
    assert "±" not in text.partition("Methods")[2]


def test_another_baseline(made):
    task = summarise(made, "topk 50%")[0]
    assert [m.name for m in task.methods] == ["topk 50%", "exact", "crs 10%"]
    assert task.methods[1].difference is not None
    assert task.methods[1].difference.mean > 0
    with pytest.raises(LogError, match=r"no method 'topk' to compare with[\s\S]*'topk 50%'"):
        summarise(made, "topk")
    only = [r for r in made if r.method == "crs 10%"]
    assert summarise(only)[0].baseline is None
    assert "crs 10%" in Reader(page(summarise(only), sources=["x"], made="now")).text


def test_nothing_to_show(made):
    with pytest.raises(LogError, match="no records"):
        summarise([])
    some = [r for r in made if not r.final]
    some += [r for r in made[-1:]]
    with pytest.raises(LogError, match="none of 1 runs came to its end"):
        summarise([dataclasses.replace(some[0], final=True), some[1]])


# -- the page ------------------------------------------------------------------------------


def test_the_page_holds_every_number(html, tasks):
    text = Reader(html).text
    for task in tasks:
        assert task.name in text
        for method in task.methods:
            accuracy = method.accuracy
            assert f"{100 * accuracy.mean:.2f} ± {100 * accuracy.half:.2f}" in text
            assert text.count(method.name) >= 6
            if method.difference:
                gap = method.difference
                assert f"{100 * gap.mean:+.2f} ± {100 * gap.half:.2f}" in text
            for run in method.runs:
                assert f"{100 * run.accuracy:.2f}" in text
    table = text.partition("Methods")[2].partition("Differences")[0]
    assert (table.count(" yes "), table.count(" no ")) == (1, 1)
    assert "bytes saved" in text


def test_the_page_stands_alone(html):
    reader = Reader(html)
    assert "http" not in html
    assert "script" not in reader.tags
    assert not [a for a in reader.attributes if a[1] == "src"]
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", html)}
    assert references <= {f"#{value}" for value in ids}
    body = html[html.index("<body>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", body), "every colour is a variable"
    assert set(re.findall(r"var\(--([a-z0-9]+)\)", html)) - {"font"} <= set(COLOURS)


def test_text_is_escaped():
    nasty = '<script>alert("1")</script> & $x_y$'
    made = [
        dataclasses.replace(r, method=nasty if r.method != "exact" else "exact", task=nasty)
        for r in records(seeds=1)
        if r.method != "crs 10%"
    ]
    html = page(summarise(made), sources=[nasty], made="now")
    assert "<script" not in html
    assert nasty in Reader(html).text


def test_many_methods_and_losses_that_are_not_finite(tmp_path):
    made = []
    for index in range(20):
        made += [
            dataclasses.replace(r, method=f"m{index}", run=f"m{index}/{r.run}", loss=math.nan)
            for r in records(seeds=2)
            if r.method == "crs 10%"
        ]
    made += [r for r in records(seeds=2) if r.method == "exact"]
    tasks = summarise(made)
    summary_png(tasks, tmp_path / "a.png", dpi=40)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "m19" in Reader(page(tasks, sources=["x"], made="now")).text


def test_a_missing_matplotlib_is_named(tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"is not installed[\s\S]*lutcc\[report\]"):
        page(tasks, sources=["x"], made="now")


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, made: list[RunRecord]) -> Path:
    return write(tmp_path / "out" / "runs.jsonl", made)


def test_command_writes_page_and_picture(lutcc_command, log, tmp_path):
    html, png = tmp_path / "r.html", tmp_path / "r.png"
    done = lutcc_command("report", "training", log.parent, "-o", html, "--png", png)
    assert (done.code, done.err) == (0, "")
    assert "topk 50%" in done.out
    assert f"Written: {html}, {png}" in done.out.replace("\n", "")
    assert "topk 50%" in Reader(html.read_text(encoding="utf-8")).text
    assert png.read_bytes().startswith(b"\x89PNG")


def test_command_prints_numbers(lutcc_command, log, tmp_path, monkeypatch, tasks):
    monkeypatch.chdir(tmp_path)
    done = lutcc_command("report", "training", log, log, "--json")
    assert done.code == 0
    assert not list(tmp_path.glob("*.html"))
    first = done.json["tasks"][0]
    method = first["methods"][1]
    assert (first["task"], first["baseline"], method["method"]) == (
        tasks[0].name,
        "exact",
        "topk 50%",
    )
    assert method["accuracy"]["mean"] == pytest.approx(tasks[0].methods[1].accuracy.mean)
    assert method["difference"]["n"] == 5
    assert method["compute"] == pytest.approx(0.55)
    assert len(method["curves"]["loss"]["x"]) == 8


def test_command_tells_of_lines_that_were_cut_off(lutcc_command, log):
    with log.open("a") as file:
        file.write('{"run": "a", "meth')
    done = lutcc_command("report", "training", log, "--json")
    assert (done.code, len(done.json["tasks"])) == (0, 2)
    assert "cut off or no JSON; the line is skipped" in done.err


def test_a_run_in_two_logs(lutcc_command, log):
    (log.parent / "copy.jsonl").write_text(log.read_text())
    done = lutcc_command("report", "training", log.parent, "--json")
    assert done.code == 1
    assert "is in" in done.err
    assert "name only one" in done.err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nowhere.jsonl"], "there is no such file", 1),
        (["empty"], "the folder holds no *.jsonl", 1),
        (["tuning.jsonl"], "is no log of training runs", 1),
        (["nothing.jsonl"], "there are no records", 1),
        (["out", "-o", "report.txt"], "does not end in .html", 2),
        (["out", "--png", "a/b/c.png"], "there is no folder", 2),
        (["out", "--within", "-1"], "--within: -1.0 is below 0", 2),
        (["out", "--baseline", "exat"], "did you mean 'exact'?", 1),
        ([], "the following arguments are required: LOG", 2),
    ],
)
def test_wrong_use(lutcc_command, log, tmp_path, monkeypatch, arguments, message, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.jsonl").touch()
    (tmp_path / "tuning.jsonl").write_text(json.dumps({"schema": 1, "op": "linear"}) + "\n")
    done = lutcc_command("report", "training", *arguments)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "training-report.html").exists()
