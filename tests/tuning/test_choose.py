"""Which config a kernel gets at compile time: from which log, for which batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutcc
from lutcc import ir
from lutcc.bench.layers import random_lookup_layer
from lutcc.codegen.lower import prepare, stage_functions
from lutcc.errors import InputError, LogError
from lutcc.schedules.x86.isa import AVX2
from lutcc.schedules.x86.plan import ALWAYS, default_stage_configs
from lutcc.tuning import host
from lutcc.tuning.choose import SHIPPED_LOGS, UNTUNED, Chooser, LevelChoosers, coverage, threshold
from lutcc.tuning.logfile import LogFile, path_for
from lutcc.tuning.records import Phase, Place
from lutcc.tuning.schema import to_line
from lutcc.tuning.stages import stage_tasks
from tests.tuning.samples import record, workload

ISA = "avx2"


def lookup_layer(rows: int | None = None) -> ir.Module:
    """Return a small look-up layer with an open or a fixed batch."""
    module = random_lookup_layer(32, 48, 8)
    if rows is None:
        return module
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((rows, 32), "float32"))
    constants = {name: b.constant(name, array) for name, array in module.constants.items()}
    codes = b.op("tree_encode", x, constants["splitdims"], constants["splitvals"])
    sums = b.op("lut_accumulate", codes, constants["lut"])
    b.returns(b.op("lut_dequantize", sums, constants["scale"], constants["offset"]))
    return b.module()


MODULE = lookup_layer()
PREPARED = prepare(MODULE)
STAGE = stage_functions(PREPARED)[0]
DEFAULT_THRESHOLD = default_stage_configs(AVX2, STAGE).stage.row_threshold
ABOVE = DEFAULT_THRESHOLD + 8  # rows where both ways are in the space


def log(
    folder: Path,
    rows: int,
    cpu: str = "znver5",
    *,
    module: ir.Module = MODULE,
    relative: float = 0.5,
    threads: int = 1,
    cache: str = "hot",
    time: str = "2026-01-01T00:00:00",
    phase: Phase = "final",
    isa: str = ISA,
    **knobs: Any,
) -> None:
    """Log that the default config with some knobs changed (``accumulate__tile_m=2``) is best."""
    (task,) = stage_tasks(module, isa, rows=(rows,), threads=threads, cache=cache)
    config = dict(task.space.default) | {k.replace("__", "."): v for k, v in knobs.items()}
    at = Place(cpu, "Some CPU", isa, None, ())
    LogFile(path_for(folder, cpu, isa)).append(
        record(relative, config, phase, of=task.workload, at=at, time=time)
    )


def choose(
    folders: Path | list[Path],
    cpu: str | None = "znver5",
    module: ir.Module = PREPARED,
    **options: Any,
) -> dict[str, Any]:
    listed = folders if isinstance(folders, list) else [folders]
    (config,) = Chooser(ISA, cpu, listed, **options).stage_configs(module).values()
    return config


# -- the order -----------------------------------------------------------------------------------


def test_without_a_log_the_default_is_used(tmp_path):
    assert choose(tmp_path) == {"source": UNTUNED}
    assert choose([]) == {"source": UNTUNED}


def test_the_very_processor_comes_first(tmp_path):
    log(tmp_path, 1024, "znver4", accumulate__tile_m=2, time="2026-02-01T00:00:00", relative=0.1)
    log(tmp_path, 1024, "znver5", accumulate__tile_m=1)
    config = choose(tmp_path)
    assert config["accumulate"]["tile_m"] == 1
    assert config["source"] == "tuned on znver5 (rows 1024)"
    config = choose(tmp_path, "znver4")
    assert (config["accumulate"]["tile_m"], config["source"]) == (2, "tuned on znver4 (rows 1024)")


def test_then_the_same_level_of_the_nearest_processor(tmp_path):
    log(tmp_path, 1024, "haswell", accumulate__tile_m=1, time="2026-03-01T00:00:00")
    log(tmp_path, 1024, "znver2", accumulate__tile_m=2, time="2026-01-01T00:00:00")
    log(tmp_path, 1024, "znver3", stage__row_block=64, time="2026-02-01T00:00:00")
    config = choose(tmp_path)
    assert config["stage"]["row_block"] == 64  # of the same vendor, the newest
    assert config["source"] == "tuned on znver3, same level (rows 1024)"
    assert choose(tmp_path, "sapphirerapids")["accumulate"]["tile_m"] == 1
    assert choose(tmp_path, None)["source"] == "tuned on haswell, same level (rows 1024)"


def test_another_level_says_nothing(tmp_path):
    log(tmp_path, 1024)
    found = Chooser("avx512", "znver5", [tmp_path]).stage_configs(PREPARED)
    assert [c["source"] for c in found.values()] == [UNTUNED]


def test_bfloat16_is_tuned_as_the_level_below(tmp_path):
    below, widest = "avx512_vbmi_vnni", "avx512_bf16"

    def chosen(isa: str) -> dict[str, Any]:
        (config,) = Chooser(isa, "znver5", [tmp_path]).stage_configs(PREPARED).values()
        return config

    log(tmp_path, 1024, isa=below, stage__row_block=64)
    assert chosen(widest)["stage"]["row_block"] == chosen(below)["stage"]["row_block"] == 64
    assert chosen(widest)["source"] == "tuned on znver5 (rows 1024)"
    log(tmp_path, 1024, isa=widest, stage__row_block=512, time="2025-01-01T00:00:00")
    assert chosen(widest)["stage"]["row_block"] == 512  # its own records come first
    assert chosen(below)["stage"]["row_block"] == 64


def test_a_folder_named_first_counts_first(tmp_path):
    mine, shipped = tmp_path / "mine", tmp_path / "shipped"
    log(mine, 1024, accumulate__tile_m=1)
    log(shipped, 1024, accumulate__tile_m=2, relative=0.1)
    log(shipped, 1, relative=0.1)
    config = choose([mine, shipped])
    assert config["accumulate"]["tile_m"] == 1
    assert config["source"] == "tuned on znver5 (rows 1, 1024)"
    log(mine, 1024, "znver4", stage__row_block=64)
    assert choose([mine, shipped], "znver4")["stage"]["row_block"] == 64
    # the very processor in the second folder before another one in the first
    log(shipped, 1024, "znver3", accumulate__tile_m=2)
    assert choose([mine, shipped], "znver3")["accumulate"]["tile_m"] == 2


def test_another_kernel_says_nothing(tmp_path):
    log(tmp_path, 1024, module=random_lookup_layer(32, 64, 8))
    assert choose(tmp_path) == {"source": UNTUNED}


def test_values_of_constants_do_not_matter(tmp_path):
    log(tmp_path, 1024, module=random_lookup_layer(32, 48, 8, seed=1), accumulate__tile_m=1)
    assert choose(tmp_path)["accumulate"]["tile_m"] == 1


def test_threads_and_cache_are_preferences(tmp_path):
    log(tmp_path, 1024, threads=4, accumulate__tile_m=1, relative=0.1)
    assert choose(tmp_path)["source"] == UNTUNED
    assert choose(tmp_path, threads=4)["accumulate"]["tile_m"] == 1
    log(tmp_path, 1024, cache="cold", accumulate__tile_m=2, relative=0.1)
    assert choose(tmp_path)["accumulate"]["tile_m"] == 2
    assert choose(tmp_path, threads=2)["accumulate"]["tile_m"] == 2
    log(tmp_path, 1024, stage__row_block=64)
    assert choose(tmp_path)["stage"]["row_block"] == 64
    assert choose(tmp_path, cache="cold")["accumulate"]["tile_m"] == 2
    assert choose(tmp_path, threads=4)["accumulate"]["tile_m"] == 1


def test_where_the_default_won_it_says_so(tmp_path):
    log(tmp_path, 1024, relative=1.0, phase="default")
    log(tmp_path, 1024, relative=1.1, accumulate__tile_m=1)
    assert choose(tmp_path)["source"] == "tuned on znver5 (rows 1024): nothing beat the default"


# -- one config for all batch sizes ----------------------------------------------------------------


def test_blocks_come_from_most_rows_and_rows_from_fewest(tmp_path):
    log(tmp_path, 1024, accumulate__tile_m=1, stage__row_block=512)
    log(tmp_path, 64, accumulate__tile_m=2, stage__row_block=64)
    log(tmp_path, 1)
    config = choose(tmp_path)
    assert config["accumulate"]["tile_m"] == 1
    assert config["stage"] == {"row_block": 512, "row_threshold": DEFAULT_THRESHOLD}
    assert config["source"] == "tuned on znver5 (rows 1, 64, 1024)"


def test_the_threshold_comes_from_what_was_found(tmp_path):
    log(tmp_path, ABOVE, stage__row_threshold=ALWAYS)
    assert choose(tmp_path)["stage"]["row_threshold"] == ABOVE
    log(tmp_path, ABOVE + 16, stage__row_threshold=0)
    assert choose(tmp_path)["stage"]["row_threshold"] == ABOVE
    log(tmp_path, ABOVE + 8, stage__row_threshold=ALWAYS)
    assert choose(tmp_path)["stage"]["row_threshold"] == ABOVE + 8


@pytest.mark.parametrize(
    ("alone", "expected"),
    [
        ({}, 8),
        ({1: True, 1024: False}, 8),
        ({16: True, 64: False}, 16),
        ({4: False}, 3),
        ({4: True, 6: False}, 5),
        ({1: False, 64: False}, 0),
        ({32: True, 64: True}, 64),
        ({2: True, 4: False, 16: True, 32: True, 64: False}, 32),  # one finding is noise
        ({2: True, 16: False, 32: True}, 8),  # either is wrong: stay
    ],
)
def test_threshold(alone, expected):
    assert threshold(alone, 8) == expected


def test_a_fixed_batch_takes_the_nearest(tmp_path):
    fixed = prepare(lookup_layer(128))
    log(tmp_path, 1024, accumulate__tile_m=1)
    log(tmp_path, 64, accumulate__tile_m=2)
    config = choose(tmp_path, module=fixed)
    assert config["accumulate"]["tile_m"] == 2
    assert config["source"] == "tuned on znver5 (rows 64)"
    log(tmp_path, 1, module=lookup_layer(128), stage__row_block=128)
    config = choose(tmp_path, module=fixed)
    assert (config["stage"]["row_block"], config["source"]) == (128, "tuned on znver5")
    assert choose(tmp_path, module=prepare(lookup_layer(600)))["accumulate"]["tile_m"] == 1


# -- configs of other versions, damaged logs -------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {"accumulate__tile_m": 3},
        {"accumulate__tile_m": 16},  # more registers than there are
        {"accumulate__tile_m": "4"},
        {"stage__row_block": -1},
        {"stage__row_threshold": 7},
        {"no_such_knob": 1},
        {"linear__tile_m": 1},  # of another kind of stage
    ],
)
def test_configs_outside_the_space_are_ignored_with_a_note(tmp_path, knobs):
    if knobs == {"accumulate__tile_m": 16}:
        knobs["accumulate__tile_r"] = 8
    log(tmp_path, 1024, relative=0.1, **knobs)
    chooser = Chooser(ISA, "znver5", [tmp_path])
    assert chooser.stage_configs(PREPARED) == {STAGE.name: {"source": UNTUNED}}
    assert len(chooser.notes) == 1
    assert "1 tuning record ignored" in chooser.notes[0]
    log(tmp_path, 1024, accumulate__tile_m=1)
    assert choose(tmp_path)["accumulate"]["tile_m"] == 1


def test_defaults_that_have_changed_since_do_not_matter(tmp_path):
    # Found with rows done alone: what blocks would have done is of no account.
    log(tmp_path, ABOVE, stage__row_threshold=ALWAYS, stage__row_block=64, accumulate__tile_m=1)
    config = choose(tmp_path)
    assert config["source"] == f"tuned on znver5 (rows {ABOVE})"
    assert "accumulate" not in config


def test_damaged_lines_are_skipped(tmp_path):
    log(tmp_path, 1024, accumulate__tile_m=1)
    path = path_for(tmp_path, "znver5", ISA)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + b"\n" + whole + whole[:300])
    assert choose(tmp_path)["accumulate"]["tile_m"] == 1


def test_another_schema_version_is_an_error(tmp_path):
    log(tmp_path, 1024)
    path = path_for(tmp_path, "znver5", ISA)
    path.write_text(path.read_text().replace('"schema":1', '"schema":9'))
    with pytest.raises(LogError, match=r"schema 9[\s\S]*upgrade"):
        choose(tmp_path)


# -- exact layers ----------------------------------------------------------------------------------


def test_relax_config(tmp_path):
    at = Place("znver5", "Some CPU", ISA, None, ())
    file = LogFile(path_for(tmp_path, "znver5", ISA))
    loops = workload(1, "loops", kind="relax", op="matmul")
    for rows, tile in ((1024, 4), (1, 2)):
        of = replace(loops, rows=rows)
        file.append(record(0.5, {"tile": tile}, "final", of=of, at=at))
    choice = LevelChoosers({isa: Chooser(isa, "znver5", [tmp_path]) for isa in (ISA, "avx512")})
    assert choice.relax_config(loops.kernel_id, ISA) == (
        {"tile": 4},
        "tuned on znver5 (rows 1024)",
    )
    assert choice.relax_config(loops.kernel_id, "avx512") is None
    assert choice.relax_config("0" * 16, ISA) is None
    assert choice.stage_configs(PREPARED, ISA) == {STAGE.name: {"source": UNTUNED}}


# -- compile ---------------------------------------------------------------------------------------


def sources(artifact: lutcc.Artifact) -> list[str]:
    return [k.source for k in artifact.explain().kernels]


def run(artifact: lutcc.Artifact, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 32)).astype(np.float32)
    np.testing.assert_array_equal(artifact(x), ir.interpret(MODULE, [x])[0])


@pytest.mark.isa("avx2")
def test_compile_takes_logs_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(host.CPU_NAME_VARIABLE, "znver5")
    untuned = lutcc.compile(MODULE, target=ISA, tuning_logs=tmp_path)
    assert sources(untuned) == [UNTUNED]
    assert "untuned for any avx2 processor" in "\n".join(untuned.explain().notes)
    log(tmp_path, 1024, accumulate__tile_m=1, stage__row_block=64)
    log(tmp_path, 1)
    log(tmp_path, ABOVE, stage__row_threshold=ALWAYS)
    tuned = lutcc.compile(MODULE, target="znver3", tuning_logs=tmp_path)
    assert sources(tuned) == [f"tuned on znver5, same level (rows 1, {ABOVE}, 1024)"]
    assert "1 of 1 kernels were tuned on another processor" in "\n".join(tuned.explain().notes)
    (kernel,) = tuned.explain().kernels
    assert kernel.config["stage"] == {"row_block": 64, "row_threshold": ABOVE}
    assert kernel.config["accumulate"]["tile_m"] == 1
    assert kernel.source in str(tuned.explain())
    for rows in (1, 2, ABOVE - 1, ABOVE, ABOVE + 1, 100, 300):
        run(tuned, rows)
    tuned.save(tmp_path / "m.lutcc")
    assert sources(lutcc.load(tmp_path / "m.lutcc")) == sources(tuned)


@pytest.mark.isa("avx2")
def test_host_means_this_processor(tmp_path, monkeypatch):
    monkeypatch.setenv(host.CPU_NAME_VARIABLE, "haswell")
    monkeypatch.setenv("LUTCC_MAX_ISA", ISA)
    log(tmp_path, 1024, "haswell", accumulate__tile_m=1)
    artifact = lutcc.compile(MODULE, tuning_logs=tmp_path)
    assert sources(artifact) == ["tuned on haswell (rows 1024)"]
    assert artifact.explain().notes == ()


def test_compile_refuses(tmp_path):
    with pytest.raises(InputError, match="trials is -1"):
        lutcc.compile(MODULE, trials=-1, tuning_logs=tmp_path)
    with pytest.raises(LogError, match=r"no such folder[\s\S]*lutcc\.tune"):
        lutcc.compile(MODULE, tuning_logs=tmp_path / "missing")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (["tuned on znver5 (rows 1)"], None),
        ([], None),
        ([UNTUNED, UNTUNED], "untuned for znver5"),
        ([UNTUNED, "tuned on znver5"], "1 of 2 kernels are untuned"),
        (["tuned on znver4, same level", UNTUNED], "1 of 2 kernels were tuned on another"),
    ],
)
def test_coverage(found, told):
    said = coverage(found, "znver5")
    assert said is None if told is None else told in str(said)


def test_choosing_is_quick(tmp_path):
    import time

    (task,) = stage_tasks(MODULE, ISA, rows=(1024,))
    at = Place("znver5", "Some CPU", ISA, None, ())
    mine = to_line(record(0.5, dict(task.space.default), of=task.workload, at=at)) + "\n"
    other = replace(task.workload, kernel=task.workload.kernel + " ")
    others = to_line(record(0.5, dict(task.space.default), of=other, at=at)) + "\n"
    path = path_for(tmp_path, "znver5", ISA)
    path.parent.mkdir()
    path.write_text((others * 20 + mine) * 100)
    choose(tmp_path)  # compiles the validator
    start = time.process_time()  # other programs take nothing of it
    choose(tmp_path)
    assert time.process_time() - start < 0.5


def test_shipped_logs_are_valid():
    from lutcc.tuning.logtools import validate

    assert SHIPPED_LOGS.is_dir()
    assert validate(SHIPPED_LOGS) == []


def test_the_runtime_imports_nothing_of_tuning():
    script = (
        "import sys, lutcc.runtime; "
        "print(json := [m for m in sys.modules if m.startswith(('lutcc.tuning', 'tvm.', 'filelock',"
        " 'fastjsonschema', 'lutcc.codegen'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
