"""fit, compile, run and inspect, end to end, and what they say of mistakes."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lutcc import ir
from lutcc.runtime import cpu
from tests.cli.support import Files

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def test_fit_writes_a_module_and_its_error(lutcc_command, files: Files, tmp_path: Path):
    out = tmp_path / "k.ir"
    done = lutcc_command("fit", files.rows, files.weight, "-C", 6, "-o", out, "--json", "-q")
    assert done.code == 0
    assert done.err == ""
    assert done.json["shape"] == {"N": 480, "D": 24, "M": 7}
    assert done.json["table_bytes"] == 6 * 16 * 7
    assert 0 < done.json["normalized_squared_error"]["train"] < 0.5
    assert 0 < done.json["normalized_squared_error"]["held_out"] < 0.5
    module = ir.parse(out.read_text())
    assert [op.opcode for op in module.main.body if op.opcode != "constant"] == [
        "tree_encode",
        "lut_accumulate",
        "lut_dequantize",
    ]


def test_fit_takes_a_torch_weight_from_safetensors(lutcc_command, files: Files, tmp_path: Path):
    from safetensors.numpy import save_file

    B = np.load(files.weight)
    save_file(
        {"fc.weight": np.ascontiguousarray(B.T), "fc.bias": np.ones(7, "f4")},
        tmp_path / "w.safetensors",
    )
    weights = f"{tmp_path}/w.safetensors"
    done = lutcc_command(
        "fit", files.rows, f"{weights}:fc.weight", "--transpose", "--bias", f"{weights}:fc.bias",
        "-C", 6, "-o", tmp_path / "biased.ir", "-q", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    A = np.load(files.rows)
    (biased,) = ir.interpret(ir.parse((tmp_path / "biased.ir").read_text()), [A])
    (plain,) = ir.interpret(ir.parse(files.module.read_text()), [A])
    np.testing.assert_allclose(biased, plain + 1, rtol=0, atol=1e-3)


def test_run_gives_what_the_interpreter_gives(lutcc_command, files: Files, tmp_path: Path):
    out = tmp_path / "y.npy"
    done = lutcc_command(
        "run", files.artifact, files.rows, "-o", out, "--repeat", 3, "--json", "-q"
    )
    assert done.code == 0, done.err
    assert done.json["isa"] == cpu.best_isa()
    assert done.json["seconds"]["calls"] == 3
    assert 0 < done.json["seconds"]["best"] <= done.json["seconds"]["median"]
    (expected,) = ir.interpret(ir.parse(files.module.read_text()), [np.load(files.rows)])
    np.testing.assert_array_equal(np.load(out), expected)


def test_several_targets_and_a_forced_variant(lutcc_command, files: Files, tmp_path: Path):
    out = tmp_path / "two.lutcc"
    done = lutcc_command("compile", files.module, "-o", out, "-t", "avx2,avx512", "--json", "-q")
    assert done.code == 0, done.err
    assert done.json["variants"] == ["avx2", "avx512"]
    y = tmp_path / "y.npy"
    done = lutcc_command("run", out, files.rows, "-o", y, "--isa", "avx2", "--threads", 1, "--json")
    assert done.code == 0, done.err
    assert (done.json["isa"], done.json["threads"]) == ("avx2", 1)
    (expected,) = ir.interpret(ir.parse(files.module.read_text()), [np.load(files.rows)])
    np.testing.assert_array_equal(np.load(y), expected)


def test_an_artifact_compiles_again_for_another_target(lutcc_command, files, tmp_path: Path):
    out = tmp_path / "again.lutcc"
    done = lutcc_command("compile", files.artifact, "-o", out, "-t", "avx2", "--json", "-q")
    assert done.code == 0, done.err
    assert done.json["variants"] == ["avx2"]


def test_inspect_shows_ir_costs_tables_and_layouts(lutcc_command, files: Files):
    done = lutcc_command("inspect", files.artifact, "-n", 10, "--json")
    assert done.code == 0, done.err
    main = done.json["modules"]["main"]
    assert "tree_encode" in main["ir"]
    assert main["cost"]["total"]["lookups"] == 10 * 6 * 7
    assert sum(c["bytes"] for c in main["constants"] if c["dtype"] == "uint8") == 6 * 16 * 7
    assert any("row_blocked" in entry["type"] for entry in main["layouts"])
    assert done.json["artifact"]["isa"] == cpu.best_isa()
    assert {"constants.safetensors", "module.ir"} < {f["name"] for f in done.json["files"]}
    text = lutcc_command("inspect", files.artifact, "-n", 10)
    for word in ("variants", "cost of 10 rows", "constants", "layouts", "packed for", "sha256"):
        assert word in text.out


def test_inspect_ir_prints_text_that_parses(lutcc_command, files: Files):
    module = ir.parse(files.module.read_text())
    plain = lutcc_command("inspect", files.module, "--ir")
    assert ir.parse(plain.out, constants=module.constants) == module
    optimized = lutcc_command("inspect", files.module, "--ir", "--optimized")
    assert "call(" in optimized.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "truncated, damaged, or no artifact"),
        (lambda data: b"", "truncated, damaged, or no artifact"),
        (lambda data: b"hello" * 100, "truncated, damaged, or no artifact"),
        (lambda data: data.replace(b"func @main(", b"func @mail(", 1), "module.ir"),
    ],
)
@pytest.mark.parametrize("command", ["run", "inspect", "compile"])
def test_damaged_artifacts(lutcc_command, files: Files, tmp_path: Path, command, change, message):
    damaged = tmp_path / "damaged.lutcc"
    damaged.write_bytes(change(files.artifact.read_bytes()))
    rest = {"run": [files.rows], "inspect": [], "compile": ["-o", tmp_path / "x.lutcc"]}[command]
    done = lutcc_command(command, damaged, *rest)
    assert done.code == 1
    assert message in done.err
    assert "To mend it" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_folder_with_a_changed_file_is_refused(lutcc_command, files: Files, tmp_path: Path):
    folder = tmp_path / "artifact"
    with zipfile.ZipFile(files.artifact) as archive:
        archive.extractall(folder)
    done = lutcc_command("run", folder, files.rows)
    assert done.code == 0, done.err
    data = bytearray((folder / "constants.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "constants.safetensors").write_bytes(data)
    done = lutcc_command("run", folder, files.rows)
    assert done.code == 1
    assert "constants.safetensors" in done.err
    assert "sha256" in done.err


def test_an_artifact_for_another_cpu(lutcc_command, files: Files, monkeypatch):
    monkeypatch.setenv("LUTCC_MAX_ISA", "none")
    done = lutcc_command("run", files.artifact, files.rows)
    assert done.code == 1
    assert "no kernels in it run on this processor" in done.err
    assert "LUTCC_MAX_ISA" in done.err
    shown = lutcc_command("inspect", files.artifact)
    assert shown.code == 0, shown.err
    assert "the processor lacks" in shown.out


def test_wrong_shape_and_dtype_name_both_sides(lutcc_command, files: Files, tmp_path: Path):
    np.save(tmp_path / "narrow.npy", np.zeros((5, 23), np.float32))
    done = lutcc_command("run", files.artifact, tmp_path / "narrow.npy")
    assert done.code == 1
    assert "23" in done.err
    assert "24" in done.err
    np.save(tmp_path / "double.npy", np.zeros((5, 24), np.float64))
    done = lutcc_command("run", files.artifact, tmp_path / "double.npy")
    assert done.code == 1
    assert "float64" in done.err
    assert "float32" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "ARTIFACT", "a.npyy"], "did you mean 'a.npy'"),
        (["run", "k.lutc", "ROWS"], "did you mean 'k.lutcc'"),
        (["run", "ARTIFACT", "ROWS", "ROWS"], "2 inputs given, the artifact takes 1"),
        (["run", "ARTIFACT", "ROWS", "-o", "1.npy", "-o", "2.npy"], "2 outputs named"),
        (["run", "ARTIFACT", "ROWS", "--repeat", "-1"], "cannot be timed"),
        (["run", "ARTIFACT", "ROWS", "--repeat", "0"], "cannot be timed"),
        (["run", "MODULE", "ROWS"], "is an IR module, not an artifact"),
        (["run", "ARTIFACT", "ROWS", "-o", "no/such/y.npy"], "'no/such' does not exist"),
        (["compile", "MODULE", "-o", "no/such/k.lutcc"], "mkdir -p no/such"),
        (["fit", "ROWS", "WEIGHT", "-o", "no/such/x.ir"], "'no/such' does not exist"),
        (["fit", "ROWS", "WEIGHT", "-o", "a.npy/x.ir"], "'a.npy' is no folder"),
        (["fit", "ROWS", "WEIGHT", "-o", "."], "is a folder"),
        (["fit", "ROWS", "WEIGHT", "-o", "x.ir", "-C", "0"], "--ncodebooks: 0 is too few"),
        (["fit", "ROWS", "WEIGHT", "-o", "x.ir", "-K", "1"], "--nprototypes: 1 is too few"),
        (["bench", "limits", "-o", "no/such/b.json"], "'no/such' does not exist"),
        (["inspect", "ROWS"], "no artifact, IR module (.ir) or exported model (.pt2)"),
        (["inspect", "ARTIFACT", "--rows", "0"], "batch size"),
        (["fit", "ROWS", "WEIGHT", "-o", "x.ir", "--held-out", "1.5"], "not a share"),
        (["fit", "ROWS", "w.txt", "-o", "x.ir"], "no file"),
        (["bench", "layer"], "did you mean 'layers'"),
        (["bench", "limits", "--isa", "avx1024"], "does not run here"),
        (["bench", "limits", "--core", "4096"], "not usable"),
        (["frobnicate"], "invalid choice"),
        (["compile"], "required"),
        ([], "required"),
    ],
)
def test_wrong_usage_exits_2(lutcc_command, files: Files, monkeypatch, arguments, message):
    monkeypatch.chdir(files.folder)
    names = {"ARTIFACT": files.artifact, "ROWS": files.rows, "WEIGHT": files.weight}
    names["MODULE"] = files.module
    done = lutcc_command(*(names.get(word, word) for word in arguments))
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "ROWS", "ROWS", "-o", "x.ir"], "A has 24 columns, B has 600 rows"),
        (["fit", "ROWS", "WEIGHT", "-o", "x.ir", "-C", "25"], "ncodebooks <= 24"),
        (["fit", "ROWS", "WEIGHT", "-o", "x.ir", "--bias", "WEIGHT"], "not a vector"),
        (
            ["compile", "ARTIFACT", "-o", "x.lutcc", "-t", "avx3"],
            "did you mean 'avx2'? Or use host",
        ),
        (
            ["compile", "ARTIFACT", "-o", "x.lutcc", "-t", "nosuch"],
            "To mend it: use host, avx2, avx512, avx512_vbmi_vnni, avx512_bf16, or a CPU",
        ),
        (["run", "ARTIFACT", "ROWS", "--isa", "avx3"], "no variant 'avx3'"),
        (["run", "ARTIFACT", "ROWS", "--threads", "0"], "thread count"),
    ],
)
def test_failures_exit_1(lutcc_command, files: Files, monkeypatch, arguments, message):
    monkeypatch.chdir(files.folder)
    names = {"ARTIFACT": files.artifact, "ROWS": files.rows, "WEIGHT": files.weight}
    done = lutcc_command(*(names.get(word, word) for word in arguments), "-q")
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["rows", "weight"])
def test_nan_in_the_input_is_placed(lutcc_command, files: Files, tmp_path: Path, name: str):
    array = np.load(getattr(files, name))
    array[3, 2] = np.nan
    spoiled = tmp_path / "spoiled.npy"
    np.save(spoiled, array)
    A, B = (spoiled, files.weight) if name == "rows" else (files.rows, spoiled)
    done = lutcc_command("fit", A, B, "-C", 6, "-o", tmp_path / "x.ir")
    assert done.code == 1
    assert f"spoiled.npy': row 3, column 2 is NaN; 1 of {array.size} values" in done.err
    assert "To mend it: drop or replace" in done.err
    assert "HistGradientBoosting" not in done.err


@pytest.mark.parametrize("data", [b"junk" * 10, b"", b"\x80\x04N."], ids=repr)
def test_a_file_that_is_no_array(lutcc_command, files: Files, tmp_path: Path, data: bytes):
    junk = tmp_path / "junk.npy"
    junk.write_bytes(data)
    done = lutcc_command("run", files.artifact, junk)
    assert done.code == 1
    assert "is not a valid .npy array" in done.err
    assert "pickle" not in done.err


def test_a_variant_that_is_not_there(lutcc_command, files: Files, tmp_path: Path):
    out = tmp_path / "one.lutcc"
    assert lutcc_command("compile", files.module, "-o", out, "-t", "avx512", "-q").code == 0
    done = lutcc_command("run", out, files.rows, "--isa", "avx2")
    assert done.code == 1
    assert "no variant 'avx2'; it has avx512\n" in done.err
    assert "compile with --target avx2,avx512\n" in done.err


def test_a_matrix_the_wrong_way_round(lutcc_command, files: Files, tmp_path: Path):
    np.save(tmp_path / "bt.npy", np.load(files.weight).T)
    words = ["fit", files.rows, tmp_path / "bt.npy", "-o", tmp_path / "x.ir"]
    done = lutcc_command(*words)
    assert done.code == 1
    assert "transpose B: --transpose" in done.err
    words[2] = files.weight
    assert "leave out --transpose" in lutcc_command(*words, "--transpose").err


def test_a_folder_that_may_not_be_written(lutcc_command, files: Files, tmp_path: Path, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != tmp_path and real(p, mode))
    done = lutcc_command("compile", files.module, "-o", tmp_path / "x.lutcc")
    assert done.code == 2
    assert "no permission to write" in done.err
    assert "compiling" not in done.err


def test_vv_shows_the_traceback(lutcc_command, files: Files):
    done = lutcc_command("fit", files.rows, files.rows, "-o", "x.ir", "-vv")
    assert done.code == 1
    assert "Traceback" in done.err


def test_a_syntax_error_names_file_and_line(lutcc_command, files: Files, tmp_path: Path):
    broken = tmp_path / "broken.ir"
    broken.write_text(files.module.read_text().replace("lut_accumulate", "lut_acumulate"))
    done = lutcc_command("compile", broken, "-o", tmp_path / "x.lutcc")
    assert done.code == 1
    assert "lut_accumulate" in done.err
    text = files.module.read_text()
    broken.write_text(text[: text.index('"') + 2])
    done = lutcc_command("compile", broken, "-o", tmp_path / "x.lutcc")
    assert done.code == 1
    assert "unterminated string" in done.err
    shutil.copy(files.rows, broken)
    done = lutcc_command("compile", broken, "-o", tmp_path / "x.lutcc")
    assert done.code == 1
    assert str(broken) in done.err
