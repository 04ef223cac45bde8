"""`lutcc report accuracy`: the numbers of logs, the page and the picture made of them."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
from scipy import stats

import lutcc.report.accuracy_data
import lutcc.report.accuracy_figures
import lutcc.report.accuracy_log
import lutcc.report.accuracy_page
from lutcc.errors import DependencyError, LogError
from lutcc.report.accuracy_data import Comparison, Conditions, compare, labels
from lutcc.report.accuracy_figures import marker, summary_png, tone
from lutcc.report.accuracy_log import AccuracyRun
from lutcc.report.accuracy_page import page
from lutcc.report.figure_style import COLOURS
from tests.cli.accuracy_logs import MACHINE, POINTS, runs, write
from tests.html_reader import Reader

ONE, MANY = Conditions(MACHINE, 1, 1), Conditions(MACHINE, 1, 1024)


@pytest.fixture(scope="module")
def made() -> list[AccuracyRun]:
    return runs()


@pytest.fixture(scope="module")
def found(made: list[AccuracyRun]) -> Comparison:
    (only,) = compare(made)
    return only


@pytest.fixture(scope="module")
def html(found: Comparison) -> str:
    return page([found], sources=["accuracy.jsonl"], made="2026-11-26 10:00 UTC")


def test_docstrings():
    import doctest

    for module in (
        lutcc.report.accuracy_data,
        lutcc.report.accuracy_figures,
        lutcc.report.accuracy_log,
        lutcc.report.accuracy_page,
    ):
        tried = doctest.testmod(module)
        assert (tried.failed, tried.attempted > 0) == (0, True)


# -- the numbers ---------------------------------------------------------------------------


def test_points_are_runs_that_differ_in_the_seed_alone(made, found):
    assert [(p.method, p.label) for p in found.points] == [
        ("exact-fp32", ""),
        ("exact-int8", ""),
        ("maddness", "C=4"),
        ("maddness", "C=8"),
        ("finetuned", "C=4"),
        ("finetuned", "C=8"),
        ("finetuned", "C=16"),
        ("lut-nn", ""),
        ("lookupffn", ""),
    ]
    for point in found.points:
        own = [r for r in made if (r.method, r.setting) == (point.method, point.setting)]
        by_seed = {r.seed: r.value for r in own}
        assert point.value.values == tuple(by_seed.values())
        assert len(by_seed) == 5
        low, high = stats.t.interval(
            0.95, 4, statistics.fmean(by_seed.values()), stats.sem(list(by_seed.values()))
        )
        assert point.value.half == pytest.approx((high - low) / 2)
        assert point.relative.mean == pytest.approx(point.value.mean / 0.975)
        assert point.trained == "250 epochs"
        for under in (ONE, MANY):
            taken = [r.time_us for r in own if r.rows == under.rows]
            if point.method == "lookupffn":
                assert not point.times
            else:
                timing = point.times[under]
                assert timing.median == statistics.median(taken)
                assert (timing.low, timing.high, timing.n) == (min(taken), max(taken), 5)
    assert found.conditions == (ONE, MANY)
    assert [p.method for p in found.untimed] == ["lookupffn"]
    assert found.replaced == 0


def test_front_by_definition(found):
    for under in found.conditions:
        timed = found.timed(under)
        for point in timed:
            time, value = point.times[under].median, point.value.mean
            beaten = any(
                other.times[under].median <= time
                and other.value.mean >= value
                and (other.times[under].median < time or other.value.mean > value)
                for other in timed
            )
            assert (point in found.front(under)) == (not beaten)
        assert 2 <= len(found.front(under)) < len(timed)


def test_gains_are_against_the_fastest_exact_network(found):
    fastest = found.fastest_exact(ONE)
    assert fastest.name == "exact-int8"
    point = next(p for p in found.points if p.name == "finetuned C=8")
    wanted = fastest.times[ONE].median / point.times[ONE].median
    assert found.gain(point, ONE) == pytest.approx(wanted)
    assert found.gain(fastest, ONE) == 1
    assert found.gain(found.untimed[0], ONE) is None
    (alone,) = compare([r for r in runs() if r.method == "maddness"])
    assert alone.fastest_exact(ONE) is None
    assert alone.gain(alone.points[0], ONE) is None
    assert alone.exact_value == pytest.approx(0.975)


def test_a_run_that_was_done_again_counts_once(made):
    again = dataclasses.replace(made[0], value=0.5, time_us=77.0)
    (found,) = compare([*made, again])
    point = found.points[0]
    assert found.replaced == 1
    assert point.value.values[0] == 0.5
    assert point.value.n == 5
    assert point.times[ONE].high == 77.0
    assert point.times[ONE].n == 5
    assert "1 run was done again" in Reader(page([found], sources=["x"], made="now")).text


def test_machines_and_models_are_not_mixed(made):
    other = [dataclasses.replace(r, machine="B") for r in made if r.time_us]
    models = runs(model="512-10")
    cosine = [dataclasses.replace(r, metric="cosine") for r in models]
    first, second, third = compare([*made, *other, *models, *cosine])
    assert [c.machine for c in first.conditions] == [MACHINE, MACHINE, "B", "B"]
    assert (second.model, third.metric) == ("512-10", "cosine")
    assert first.points[0].value.n == 5


def test_one_seed_has_no_spread(tmp_path):
    (found,) = compare(runs(seeds=1))
    assert {(p.value.half, p.value.std) for p in found.points} == {(None, None)}
    text = Reader(page([found], sources=["x"], made="now")).text
    assert "±" not in text.partition("All points")[2]
    summary_png([found], tmp_path / "a.png", dpi=40)


def test_no_runs():
    with pytest.raises(LogError, match="there are no runs"):
        compare([])


# -- page and picture ----------------------------------------------------------------------


def test_the_page_holds_every_number(html, found):
    text = Reader(html).text
    for point in found.points:
        assert f"{100 * point.value.mean:.2f} ± {100 * point.value.half:.2f}" in text
        assert f"{point.relative.mean:.4f} ± {point.relative.half:.4f}" in text
        for under in point.times:
            assert f"{found.gain(point, under):.2f}×" in text
        for run in point.runs:
            assert f"{run.value:.4f}" in text
    assert "Not drawn, as it has no time: lookupffn." in text
    assert "skipped" not in text
    assert "1,024 rows, one core, A processor" in text
    table = text.partition("All points")[2]
    beaten = sum(p not in found.front(u) for u in found.conditions for p in found.timed(u))
    assert table.count(" yes ") == beaten
    told = page([found], sources=["x"], made="now", skipped=2)
    assert "2 lines of the logs were skipped" in Reader(told).text


def test_what_is_drawn(html, found):
    """Every timed method is in the legend; a label is there once for each point with room."""
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(drawings) == 2
    for drawing in drawings:
        texts = [t.strip() for t in re.findall(r"<text[^>]*>([^<]*)</text>", drawing)]
        for method in POINTS:
            assert texts.count(method) == (method != "lookupffn")
        assert texts.count("C=16") == 1
        assert texts.count("C=4") == texts.count("C=8") == 2
        assert "time of exact-int8" in texts


def test_methods_are_told_apart(found):
    looks = {(tone(found, m), marker(found, m)) for m in found.methods}
    assert len(looks) == len(found.methods)
    assert {tone(found, m) for m in found.methods} <= set(COLOURS)
    many = [dataclasses.replace(r, method=f"m{i}") for i in range(10) for r in runs(seeds=1)[:1]]
    (wide,) = compare(many)
    assert len({(tone(wide, m), marker(wide, m)) for m in wide.methods}) == 10


def test_the_page_stands_alone(html):
    reader = Reader(html)
    assert "http" not in html
    assert "script" not in reader.tags
    assert not [a for a in reader.attributes if a[1] == "src"]
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    body = html[html.index("<body>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", body), "every colour is a variable"
    assert set(re.findall(r"var\(--([a-z0-9]+)\)", html)) - {"font"} <= set(COLOURS)


def test_text_is_escaped():
    nasty = '<script>alert("1")</script> & $x_y$'
    made = [
        dataclasses.replace(r, method=nasty, task=nasty, model=nasty, setting={nasty: nasty})
        for r in runs(seeds=1)[:2]
    ]
    html = page(compare(made), sources=[nasty], made="now")
    assert "<script" not in html
    assert nasty in Reader(html).text


def test_nothing_timed(tmp_path):
    bare = [r for r in runs() if r.method == "lookupffn"]
    found = compare(bare)
    assert "Not drawn" in Reader(page(found, sources=["x"], made="now")).text
    summary_png(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"is not installed[\s\S]*lutcc\[report\]"):
        page([found], sources=["x"], made="now")


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, made: list[AccuracyRun]) -> Path:
    return write(tmp_path / "out" / "accuracy.jsonl", made)


def test_command_writes_page_and_picture(lutcc_command, log, tmp_path):
    done = lutcc_command("report", "accuracy", log.parent, "-o", tmp_path)
    assert (done.code, done.err) == (0, "")
    html, png = tmp_path / "accuracy-report.html", tmp_path / "accuracy-report.png"
    assert "finetuned C=16" in done.out
    assert f"Written: {html}, {png}" in done.out.replace("\n", "")
    assert "finetuned" in Reader(html.read_text(encoding="utf-8")).text
    assert png.read_bytes().startswith(b"\x89PNG")


def test_command_prints_numbers(lutcc_command, log, tmp_path, monkeypatch, found):
    monkeypatch.chdir(tmp_path)
    done = lutcc_command("report", "accuracy", log, log, "--json")
    assert done.code == 0
    assert not list(tmp_path.glob("*.html"))
    (first,) = done.json["comparisons"]
    point = next(p for p in first["points"] if p["setting"] == {"codebooks": 16, "K": 16})
    own = next(p for p in found.points if p.name == "finetuned C=16")
    assert (first["task"], first["metric"], point["seeds"]) == ("digits", "accuracy", [*range(5)])
    assert point["value"]["mean"] == pytest.approx(own.value.mean)
    assert [t["rows"] for t in point["times"]] == [1, 1024]
    assert point["times"][0]["gain"] == pytest.approx(found.gain(own, ONE))
    front = [p["method"] for p in first["fronts"][0]["points"]]
    assert front == [p.method for p in found.front(ONE)]
    assert done.json["skipped"] == 0


def test_command_tells_of_lines_that_were_cut_off(lutcc_command, log, tmp_path):
    with log.open("a") as file:
        file.write('{"task": "a", "meth')
    html = tmp_path / "r.html"
    done = lutcc_command("report", "accuracy", log, "-o", html, "--json")
    assert (done.code, done.json["skipped"]) == (0, 1)
    assert "cut off or no JSON; the line is skipped" in done.err
    assert "1 line of the logs was skipped" in Reader(html.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nowhere.jsonl"], "there is no such file", 1),
        (["empty"], "the folder holds no *.jsonl", 1),
        (["tuning.jsonl"], "is no log of accuracies", 1),
        (["nothing.jsonl"], "there are no runs", 1),
        (["out", "-o", "report.txt"], "does not end in .html", 2),
        (["out", "--png", "a/b/c.png"], "there is no folder", 2),
        ([], "the following arguments are required: LOG", 2),
    ],
)
def test_wrong_use(lutcc_command, log, tmp_path, monkeypatch, arguments, message, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.jsonl").touch()
    (tmp_path / "tuning.jsonl").write_text(json.dumps({"schema": 1, "op": "linear"}) + "\n")
    done = lutcc_command("report", "accuracy", *arguments)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "accuracy-report.html").exists()


def test_labels_hold_what_differs_in_a_panel():
    """Shapes of a batch may be in the setting: each panel has one of them."""
    made = [
        dataclasses.replace(r, setting={**r.setting, "shape": f"{r.rows} x 64"})
        for r in runs(seeds=1)
        if r.method == "finetuned"
    ]
    (found,) = compare(made)
    assert len(found.points) == 6
    assert found.points[0].label == "C=4, 1 x 64"
    assert labels(found.timed(ONE)) == ["C=4", "C=8", "C=16"]


def test_settings_may_be_texts():
    """Numbers in them are numbers; others say what they are."""
    found = [
        dataclasses.replace(runs(seeds=1)[0], setting={"codebooks": c, "rate": rate})
        for c, rate in (("16", 0.5), ("4", 0.5), ("8 and 64", 0.5), (8, 0.25))
    ]
    (only,) = compare(found)
    wanted = ["C=4, rate=0.5", "C=8, rate=0.25", "C=16, rate=0.5", "8 and 64, rate=0.5"]
    assert [point.label for point in only.points] == wanted
