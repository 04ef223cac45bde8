"""`lutcc report tuning`: the numbers of logs, the page and the picture made of them."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lutcc.cli.main import main
from lutcc.errors import DependencyError, LogError
from lutcc.report.figure_style import COLOURS
from lutcc.report.tuning_data import Target, summarise
from lutcc.report.tuning_figures import summary_png
from lutcc.report.tuning_page import page
from lutcc.tuning import names
from lutcc.tuning.limits import assumed_limits, save_limits
from lutcc.tuning.logfile import best
from lutcc.tuning.records import Outcome, Record
from lutcc.tuning.workload import Workload
from tests.html_reader import Reader
from tests.tuning.synthetic import (
    DEFAULT,
    SAPPHIRE_RAPIDS,
    WORKLOADS,
    ZEN5,
    lookup,
    plain,
    session,
    two_sessions,
    write_log,
)


def targets_of(records: list[Record]) -> tuple[Target, ...]:
    return summarise(records, lambda place: assumed_limits(place.isa))


def page_of(records: list[Record]) -> str:
    return page(targets_of(records), sources=["a-folder"], made="2026-11-22 10:00 UTC")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return two_sessions()


@pytest.fixture(scope="module")
def target(records: list[Record]) -> Target:
    (found,) = targets_of(records)
    return found


@pytest.fixture(scope="module")
def html(records: list[Record]) -> str:
    return page_of(records)


# -- the numbers ---------------------------------------------------------------------------


def test_every_kernel_is_told_with_what_a_compiler_would_take(records, target):
    chosen = best(records)
    assert {k.workload.id for k in target.kernels} == {w.id for w in WORKLOADS}
    assert len({k.name for k in target.kernels}) == len(WORKLOADS)
    for kernel in target.kernels:
        record = chosen[kernel.workload.id]
        assert kernel.chosen == record
        assert kernel.tuned == (dict(record.config) != DEFAULT)
        assert kernel.relative == (record.relative if kernel.tuned else 1.0)
        changed = {k: v for k, v in record.config.items() if v != DEFAULT[k]}
        assert {knob: after for knob, _, after in kernel.changes} == {
            knob: str(value) for knob, value in changed.items()
        }
    assert any(k.tuned for k in target.kernels)
    assert target.unchanged, "the made-up log has kernels without a gain"


def test_the_default_is_the_one_beside_the_chosen_config(records, target):
    kernel = next(k for k in target.kernels if k.confirmed)
    assert kernel.default is not None
    assert kernel.chosen is not None
    assert kernel.default.session == kernel.chosen.session
    assert (kernel.default.phase, kernel.chosen.phase) == ("final", "final")
    assert kernel.best_s / kernel.default_s == pytest.approx(kernel.relative, rel=0.1)


def test_curves_fall_from_the_default_and_end_at_the_best_trial(target):
    for kernel in target.kernels:
        times = [r.relative for r in kernel.trials if r.relative is not None]
        assert len(kernel.curve) == len(kernel.trials)
        assert list(kernel.curve) == sorted(kernel.curve, reverse=True)
        assert kernel.curve[-1] == min(1.0, *times)


def test_trials_that_were_stopped_early_do_not_lower_the_curve():
    first, *rest = session(WORKLOADS[:1], trials=4, failure_rate=0, finals=False)
    rest = [replace(r, outcome=replace(r.outcome, stopped=True), relative=0.1) for r in rest]
    (kernel,) = targets_of([first, *rest])[0].kernels
    assert kernel.curve == (1.0,) * 4


def test_sums(records, target):
    gains = [1 / k.relative for k in target.kernels]
    assert target.total.gain == pytest.approx(math.exp(statistics.fmean(map(math.log, gains))))
    assert target.total.kernels == sum(g.kernels for g in target.by_family) == len(WORKLOADS)
    assert sum(g.kernels for g in target.by_rows) == len(WORKLOADS)
    assert target.total.faster == sum(g.faster for g in target.by_rows)
    assert len(target.unchanged) == len(WORKLOADS) - target.total.faster
    trials = [r for r in records if r.phase == "search"]
    assert target.trials == len(trials) == sum(s.trials for s in target.sessions)
    assert target.statuses["ok"] == sum(r.outcome.status == "ok" for r in trials)
    assert min(target.statuses.values()) > 0, "the made-up log has failures of every kind"
    assert [s.seed for s in target.sessions] == [0, 1]
    total = sum(r.outcome.total_s for r in records)
    assert target.seconds == pytest.approx(total, rel=0.01)
    middle, high = target.overhead_s
    overheads = sorted(r.outcome.overhead_s for r in trials)
    assert middle == pytest.approx(statistics.median(overheads))
    assert sum(o <= high for o in overheads) / len(overheads) == pytest.approx(0.9, abs=0.01)
    changing = [k for k in target.kernels if any(c[0] == "stage.row_block" for c in k.changes)]
    assert dict((knob, n) for knob, n, _ in target.by_knob)["stage.row_block"] == len(changing)


def test_a_gain_within_the_noise_is_not_called_one():
    made = list(session(WORKLOADS[:1], trials=3, failure_rate=0, finals=False))
    for relative, tuned in ((0.995, False), (0.97, True)):
        (target,) = targets_of([made[0], replace(made[1], relative=relative)])
        (kernel,) = target.kernels
        assert target.total is not None
        assert (kernel.tuned, kernel.confirmed, target.total.faster) == (tuned, False, int(tuned))
        assert target.unchanged == ([] if tuned else [kernel])
    searched = [made[0], replace(made[1], relative=0.5)]
    assert "in the search only" in Reader(page_of(searched)).text


def test_roofline_is_the_slowest_resource_over_the_time(target):
    limits = target.limits
    kernel = next(k for k in target.kernels if k.workload == WORKLOADS[4])
    rate = limits.lookups["vpermb+vpdpbusd zmm"]
    assert kernel.bound.resource == "look-ups"
    assert kernel.bound.seconds == pytest.approx(4096 * 1024 * 64 / rate)
    assert kernel.share == pytest.approx(kernel.bound.seconds / kernel.best_s)
    assert kernel.share / kernel.default_share == pytest.approx(kernel.default_s / kernel.best_s)


def test_an_unknown_level_has_no_roofline(records):
    odd = [replace(r, place=replace(r.place, isa="avx3")) for r in records[:60]]
    (target,) = summarise(odd, lambda place: None)
    assert {k.share for k in target.kernels} == {None}
    assert "not known" in Reader(page((target,), sources=["x"], made="now")).text


def nest(op: str, **dims: float) -> Workload:
    return Workload("relax", op, "k", 4, dims=dims)


@pytest.mark.parametrize(
    ("workload", "family", "name"),
    [
        (lookup(4, 512, 256, 64), "look-up layer", "look-up 512→256 C64"),
        (lookup(4, 8, 8, 2, entries=32, mean=1), "look-up layer", "look-up 8→8 C2 K32 mean"),
        (replace(lookup(4, 64, 30, 8), op="lut_accumulate"), "scan", "scan C8→30"),
        (plain("tree_encode", 4, 512, 64), "encoder", "tree encode 512→C64"),
        (plain("linear", 4, 512, 30), "matrix product", "linear 512→30"),
        (plain("fused_NT_matmul1_add", 4, 8, 9), "matrix product", "NT matmul1 add 8→9"),
        (nest("matmul", i=16, j=32, k=64, batch=8), "matrix product", "matmul 8×(16×64→32)"),
        (nest("max_pool2d", elements=4096), "elementwise and other", "max pool2d 1024"),
        (plain("relu", 4, 512), "elementwise and other", "relu 512"),
        (Workload("stage", "?", "k", 0), "elementwise and other", "? ?"),
    ],
)
def test_names(workload, family, name):
    assert names.family(workload) == family
    assert names.short_name(workload) == name


def test_names_are_told_apart():
    one = lookup(1024, 64, 64, 16)
    kinds = [one, replace(one, rows=1, dims={**one.dims, "rows": 1}), replace(one, cache="cold")]
    kinds += [replace(one, threads=2), replace(one, kernel="another text")]
    found = names.full_names(kinds)
    assert len(set(found)) == len(kinds)
    assert found[1:4] == [
        "look-up 64→64 C16, N 1",
        "look-up 64→64 C16, N 1,024, cold",
        "look-up 64→64 C16, N 1,024, 2 threads",
    ]


# -- the page ------------------------------------------------------------------------------


def test_the_page_holds_every_kernel_and_number(html, target):
    text = Reader(html).text
    for kernel in target.kernels:
        assert text.count(kernel.name) >= 4, "table, three figures"
        assert names.duration(kernel.default_s) in text
        assert f"{kernel.share:.0%} of {kernel.bound.resource}" in text
        if kernel.tuned:
            assert names.gain(kernel.relative) in text
            assert names.duration(kernel.best_s) in text
        for knob, before, after in kernel.changes:
            assert f"{knob} {before} → {after}" in text
    for group in (*target.by_family, *target.by_rows):
        assert f"{group.label} {group.kernels} {group.faster} {group.gain:.2f}×" in text
    for status in ("compile error", "wrong result", "timeout", "crash"):
        assert status in text
    for record in target.sessions:
        assert record.id in text
    unchanged = text[text.index("gained nothing on") :]
    assert all(k.name in unchanged for k in target.unchanged)
    assert "amx_int8" in text
    assert "apache-tvm 0.27.0.post1" in text


def test_the_page_stands_alone(html):
    reader = Reader(html)
    assert "http" not in html
    assert "script" not in reader.tags
    assert not [a for a in reader.attributes if a[1] == "src"]
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = {value for _, name, value in reader.attributes if name == "href"}
    references |= {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", html)}
    assert references
    assert references <= {f"#{value}" for value in ids}


def test_colours_follow_light_and_dark(html):
    body = html[html.index("<body>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", body), "every colour is a variable"
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", html)) - {"font"}
    assert used <= set(COLOURS)
    assert "prefers-color-scheme: dark" in html


def test_text_is_escaped():
    nasty = '<script>alert("1")</script> & $x_y$ <b>'
    workload = replace(WORKLOADS[0], kernel=nasty, op=nasty, dims={})
    made = list(session([workload], trials=6, failure_rate=0.5))
    made = [
        replace(
            r,
            session=nasty,
            place=replace(r.place, model=nasty, features=(nasty,)),
            versions={nasty: nasty},
            config={**r.config, nasty: nasty if r.phase == "final" else "<i>"},
            outcome=replace(r.outcome, message=nasty),
        )
        for r in made
    ]
    html = page_of(made)
    reader = Reader(html)
    assert not {"script", "i>"} & set(reader.tags)
    assert "<script" not in html
    assert "<i>" not in html
    assert nasty in reader.text
    assert "tspan" not in reader.tags, "the figures take names as they are, not as formulas"


# -- odd logs ------------------------------------------------------------------------------


def test_a_single_record(records):
    html = page_of(records[:1])
    text = Reader(html).text
    assert "look-up 512→512 C64, N 1" in text
    assert "default is best" in text


def test_failures_only(tmp_path):
    made = list(session(WORKLOADS[:2], trials=5, failure_rate=1.0))
    broken = Outcome("crash", message="the worker died", total_s=0.1)
    made = [replace(r, outcome=broken, relative=None) for r in made if r.phase != "final"]
    (target,) = targets_of(made)
    assert target.broken == list(target.kernels)
    assert target.total is None
    text = Reader(page_of(made)).text
    assert text.count("no config ran") >= 4
    assert "10 failed: 10 crash" in text
    summary_png((target,), tmp_path / "a.png", dpi=50)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_failed_trials_leave_the_default():
    made = list(session(WORKLOADS[:1], trials=5, failure_rate=1.0))
    (kernel,) = targets_of(made)[0].kernels
    assert (kernel.relative, kernel.tuned, len(kernel.failures)) == (1.0, False, 5)


def test_two_processors(tmp_path):
    records = [*session(WORKLOADS[:2], trials=9), *session(WORKLOADS[:3], place=ZEN5, trials=4)]
    targets = targets_of(records)
    assert [t.name for t in targets] == ["sapphirerapids · avx512_vbmi_vnni", "znver5 · avx512"]
    assert [len(t.kernels) for t in targets] == [2, 3]
    reader = Reader(page(targets, sources=["x"], made="now"))
    assert all(word in reader.text for word in ("AMD EPYC 9755", "code for znver5"))
    assert ("a", "href", "#t2") in reader.attributes
    summary_png(targets, tmp_path / "a.png", dpi=50)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_show():
    with pytest.raises(LogError, match="no records"):
        targets_of([])


def test_a_missing_matplotlib_is_named(records, monkeypatch):
    targets = targets_of(records[:1])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"is not installed[\s\S]*lutcc\[report\]"):
        page(targets, sources=["x"], made="now")


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def logs(tmp_path: Path, records: list[Record]) -> Path:
    folder = write_log(tmp_path / "logs", records[:200])
    kept = replace(assumed_limits("avx512_vbmi_vnni"), model=SAPPHIRE_RAPIDS.model, measured="2026")
    save_limits(folder / "sapphirerapids", kept)
    return folder


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["report", "tuning", *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_command_writes_page_and_picture(report, logs, tmp_path):
    html, png = tmp_path / "r.html", tmp_path / "r.png"
    code, out, err = report(logs, "-o", html, "--png", png)
    assert (code, err) == (0, "")
    assert "look-up 512→512 C64, N 1" in out
    assert f"Written: {html}, {png}" in out.replace("\n", "")
    assert "Limits measured 2026 UTC on Intel" in Reader(html.read_text(encoding="utf-8")).text
    assert png.read_bytes().startswith(b"\x89PNG")


def test_command_prints_numbers(report, logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = logs / "sapphirerapids" / "avx512_vbmi_vnni.jsonl"
    code, out, _ = report(logs, file, "--json")
    data = json.loads(out)
    (target,) = data["targets"]
    assert (code, data["files"]) == (0, [])
    assert not list(tmp_path.glob("*.html"))
    trials = sum(json.loads(line)["phase"] == "search" for line in file.read_text().splitlines())
    assert target["trials"] == sum(k["trials"] for k in target["kernels"]) == trials
    assert target["limits"]["measured"] == "2026"
    kernel = target["kernels"][0]
    assert kernel["roofline"] == pytest.approx(kernel["bound"]["seconds"] / kernel["best_s"])
    assert kernel["config"].keys() == DEFAULT.keys()


def test_command_takes_one_session(report, tmp_path):
    folder = write_log(tmp_path / "logs", session(WORKLOADS[:2], trials=3))
    later = session(WORKLOADS[:2], trials=3, seed=1, start="2026-11-21T10:00:00+00:00")
    write_log(folder, later)
    for wanted, seed in (("latest", 1), ("20261120T09", 0)):
        code, out, _ = report(folder, "--json", "-q", "--session", wanted)
        assert code == 0
        assert [s["seed"] for s in json.loads(out)["targets"][0]["sessions"]] == [seed]
    code, _, err = report(folder, "--json", "-q", "--session", "2026")
    assert (code, "2 sessions start with '2026'" in err) == (1, True)
    code, _, err = report(folder, "--json", "-q", "--session", "nobody")
    assert (code, "there is no session 'nobody'" in err) == (1, True)


def test_command_tells_of_bad_lines_and_empty_logs(report, logs, tmp_path):
    file = logs / "sapphirerapids" / "avx512_vbmi_vnni.jsonl"
    with file.open("a") as log:
        log.write('{"schema": 1, "op": "torn')
    code, out, err = report(logs, "--json")
    assert (code, len(json.loads(out)["targets"])) == (0, 1)
    assert "the line is skipped" in err
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    code, out, err = report(empty, "-o", tmp_path / "e.html")
    assert (code, out) == (1, "")
    assert "there are no records to show" in err
    assert not (tmp_path / "e.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nowhere"], "no such file or folder", 1),
        (["-o", "report.txt"], "does not end in .html", 2),
        (["--png", "a/b/c.png"], "there is no folder", 2),
    ],
)
def test_wrong_use(report, logs, tmp_path, monkeypatch, arguments, message, code):
    monkeypatch.chdir(tmp_path)
    got, _, err = report(*(arguments if arguments == ["nowhere"] else [logs, *arguments]))
    assert got == code
    assert message in err


def test_limits_of_another_machine_are_not_measured_here(report, tmp_path):
    folder = write_log(tmp_path / "logs", session(WORKLOADS[:1], place=ZEN5, trials=2))
    code, _, err = report(folder, "--json", "--measure")
    assert code == 1
    assert "znver5" in err
    code, out, _ = report(folder, "--json")
    assert json.loads(out)["targets"][0]["limits"]["measured"] is None


def test_broken_limits_are_named(report, logs):
    (logs / "sapphirerapids" / "limits.json").write_text('{"schema": 1, "levels": [{}]}')
    code, _, err = report(logs, "--json")
    assert code == 1
    assert "does not hold limits" in err
