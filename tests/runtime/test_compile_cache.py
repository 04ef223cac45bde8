"""The compile cache: what was built is not built again, and nothing wrong ever comes out of it."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc import ir
from lutcc.codegen import cached, compile_cache
from lutcc.codegen.compile_cache import CompileCache, default_cache
from lutcc.codegen.targets import parse_targets
from lutcc.compiler import compile_module
from lutcc.errors import InputError
from lutcc.frontend import import_torch
from lutcc.frontend.relax import build_mixed
from lutcc.frontend.torch_import import Imported

X = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    """An empty cache."""
    return CompileCache(tmp_path / "cache", 1 << 26)


def layer(weight: float = 1.0, width: int = 12) -> ir.Module:
    """One linear layer."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 12), "float32"))
    w = np.random.default_rng(1).standard_normal((width, 12)).astype(np.float32) * weight
    zero = np.zeros(width, np.float32)
    b.returns(b.op("linear", x, b.constant("w", w), b.constant("b", zero), activation="none"))
    return b.module()


def compiled(module: ir.Module, cache: CompileCache | None, target: str = "avx2") -> Any:
    return compile_module(module, parse_targets(target), cache=cache)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was lowered and built since."""
    done: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            done.append(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(cached, "lower", counted("lower", cached.lower))
    monkeypatch.setattr(cached, "build_module", counted("build", cached.build_module))
    return done


def test_the_second_compilation_builds_nothing(cache: CompileCache, builds: list[str]) -> None:
    first = compiled(layer(), cache, "avx2,avx512")
    assert builds == ["lower", "build"] * 2
    builds.clear()
    second = compiled(layer(), cache, "avx2,avx512")
    assert builds == []
    assert (cache.hits, cache.misses) == (4, 4)
    assert second.manifest == first.manifest
    np.testing.assert_array_equal(second(X), first(X))


def test_other_weights_have_the_same_kernels(cache: CompileCache, builds: list[str]) -> None:
    compiled(layer(), cache)
    builds.clear()
    other = compiled(layer(2.0), cache)
    assert builds == ["lower"]
    np.testing.assert_array_equal(other(X), compiled(layer(2.0), None)(X))


def test_what_makes_other_kernels(cache: CompileCache, builds: list[str]) -> None:
    compiled(layer(), cache)
    builds.clear()
    compiled(layer(width=13), cache)
    assert builds == ["lower", "build"]
    builds.clear()
    compiled(layer(), cache, "haswell")  # the same level, tuned for another processor
    assert builds == ["lower", "build"]


def test_code_that_changes_while_it_runs_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = compile_cache.code_digest.__wrapped__
    monkeypatch.setattr(lutcc, "__file__", str(tmp_path / "__init__.py"))
    source = tmp_path / "ir" / "ops.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    assert digest() != digest()  # it changed after this process began
    os.utime(source, (1, 1))
    before = digest()
    assert before == digest()
    source.write_text("x = 2")
    os.utime(source, (1, 1))
    assert digest() != before


def test_code_of_another_version_is_not_used(
    cache: CompileCache, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(layer(), cache)
    builds.clear()
    monkeypatch.setattr(compile_cache, "code_digest", lambda: "another version")
    compiled(layer(), cache)
    assert builds == ["lower", "build"]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("how", ["cut", "changed", "empty", "something else", "a folder"])
def test_damaged_entries_are_built_again(cache: CompileCache, builds: list[str], how: str) -> None:
    want = compiled(layer(), cache)(X)
    for path in cache.entries():
        data = path.read_bytes()
        if how == "a folder":
            path.unlink()
            path.mkdir()
            continue
        damaged = {
            "cut": data[:-7],
            "changed": data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
            "empty": b"",
            "something else": b"not an entry at all, but long enough to be one, as it seems" * 3,
        }
        path.write_bytes(damaged[how])
    builds.clear()
    np.testing.assert_array_equal(compiled(layer(), cache)(X), want)
    assert builds == ["lower", "build"]
    builds.clear()
    compiled(layer(), cache)
    assert builds == ([] if how != "a folder" else ["lower", "build"])


def test_nothing_is_lost_without_a_folder(
    cache: CompileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.folder.write_text("a file is in the way")
    want = compiled(layer(), None)(X)
    np.testing.assert_array_equal(compiled(layer(), cache)(X), want)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    other = CompileCache(tmp_path / "full", 1 << 26)
    monkeypatch.setattr(os, "replace", full)
    np.testing.assert_array_equal(compiled(layer(), other)(X), want)
    assert list((tmp_path / "full").iterdir()) == []  # nothing half is left


def test_entries_are_for_this_user_only(cache: CompileCache) -> None:
    cache.put("a", {})
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(about.st_mode) == 0o600 for about in cache.entries().values())


def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, 10_000)
    for index in range(9):
        cache.put(f"e{index}", index, bytes(900))
        os.utime(tmp_path / f"e{index}.entry", (index, index))
    assert cache.get("e0") is not None  # used now
    for index in range(9, 12):
        cache.put(f"e{index}", index, bytes(900))
    left = {path.name for path in cache.entries()}
    assert "e0.entry" in left
    assert "e1.entry" not in left
    assert "e11.entry" in left
    assert sum(about.st_size for about in cache.entries().values()) <= 10_000
    cache.put("huge", 0, bytes(9_000))  # would leave room for nothing else
    assert cache.get("huge") is None
    assert {path.name for path in cache.entries()} == left


def test_what_dead_processes_left_is_removed(cache: CompileCache) -> None:
    cache.put("a", 1)
    old, young = cache.folder / "x.1.part", cache.folder / "x.2.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    CompileCache(cache.folder, cache.limit).put("b", 2)
    assert not old.exists()
    assert young.exists()  # maybe it is being written


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LUTCC_CACHE_DIR", "")
    found = default_cache()
    assert found is not None
    assert found.folder == tmp_path / "xdg" / "lutcc"
    assert found.limit == compile_cache.DEFAULT_MB << 20
    monkeypatch.setenv("LUTCC_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("LUTCC_CACHE_MB", "7")
    found = default_cache()
    assert found is not None
    assert (found.folder, found.limit) == (tmp_path / "mine", 7 << 20)
    lutcc.compile(layer(), target="avx2")
    assert len(found.entries()) == 2
    lutcc.compile(layer(2), target="avx2", cache=False)
    assert len(found.entries()) == 2
    lutcc.compile(layer(), target="avx2", cache=tmp_path / "other")
    assert len(CompileCache(tmp_path / "other", 1).entries()) == 2
    for name, value in (("LUTCC_CACHE_MB", "0"), ("LUTCC_CACHE_DIR", "off")):
        monkeypatch.setenv(name, value)
        assert default_cache() is None
    monkeypatch.setenv("LUTCC_CACHE_MB", "2 GB")
    with pytest.raises(InputError, match=r"(?s)LUTCC_CACHE_MB.*'2 GB' is no number of megabytes"):
        lutcc.compile(layer(), target="avx2")


def _compile_into(folder: Path, answers: Any) -> None:
    compile_cache.code_digest = lambda *_: "the same"  # whatever is edited meanwhile
    cache = CompileCache(folder, 1 << 26)
    for width in (12, 13):
        answers.put(compiled(layer(width=width), cache)(X))


@pytest.mark.thorough
def test_two_processes_compile_into_one_cache(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "code_digest", lambda *_: "the same")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=_compile_into, args=(cache.folder, answers)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=120) for _ in range(4)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    for got in found:
        want = compiled(layer(width=got.shape[1]), cache)(X)
        np.testing.assert_array_equal(got, want)
    assert cache.misses == 0  # all four were read back, none damaged
    assert len(cache.entries()) == 4


# -- models with exact layers ------------------------------------------------------------------


class Mixed(nn.Module):
    """Two regions of lutcc around what only Relax knows."""

    def __init__(self, seed: int, hidden: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(12, hidden), nn.Linear(hidden, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sin(self.first(x)))


def imported(seed: int, **sizes: int) -> Imported:
    found = import_torch(Mixed(seed, **sizes).eval(), torch.zeros(3, 12))
    assert found.kind == "mixed"
    return found


@pytest.fixture
def relax_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Executables that were built since."""
    import lutcc.frontend.relax.build as home

    done: list[str] = []
    build = home._build

    def counted(*args: Any) -> None:
        done.append(args[2].name)
        build(*args)

    monkeypatch.setattr(home, "_build", counted)
    return done


def test_a_mixed_model(cache: CompileCache, relax_builds: list[str]) -> None:
    x = torch.from_numpy(X)
    first = lutcc.compile(imported(0), target="avx2", cache=cache)
    assert relax_builds == ["kernels-avx2.so"]
    again = lutcc.compile(imported(0), target="avx2", cache=cache)
    other = lutcc.compile(imported(1), target="avx2", cache=cache)  # other weights, the same code
    assert relax_builds == ["kernels-avx2.so"]
    assert again.manifest == first.manifest
    for seed, artifact in ((0, again), (1, other)):
        with torch.no_grad():
            torch.testing.assert_close(artifact(x), Mixed(seed)(x), rtol=1e-5, atol=1e-5)
    lutcc.compile(imported(0, hidden=11), target="avx2", cache=cache)
    assert len(relax_builds) == 2


@pytest.mark.thorough
def test_an_interrupted_compilation_goes_on(
    cache: CompileCache, relax_builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lutcc.frontend.relax.build as home

    build = home._build

    def interrupted(*args: Any) -> None:
        if relax_builds:
            raise KeyboardInterrupt
        build(*args)

    monkeypatch.setattr(home, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lutcc.compile(imported(0), target="avx2,avx512", cache=cache)
    monkeypatch.setattr(home, "_build", build)
    relax_builds.clear()
    lutcc.compile(imported(0), target="avx2,avx512", cache=cache)
    assert relax_builds == ["kernels-avx512.so"]


def test_other_tuned_configs_make_other_kernels(
    cache: CompileCache, relax_builds: list[str], tmp_path: Path
) -> None:
    class Choice:
        answer: Any = None
        asked = 0

        def stage_configs(self, module: ir.Module, isa: str) -> dict[str, Any]:
            return {}

        def relax_config(self, kernel_id: str, isa: str) -> Any:
            self.asked += 1
            return self.answer

    model, choice = imported(0), Choice()
    for _ in range(2):
        build_mixed(model, ["avx2"], tmp_path, choice=choice, cache=cache)
    assert choice.asked
    assert len(relax_builds) == 1
    choice.answer = ({"no such knob": 1}, "a log")
    for _ in range(2):
        build_mixed(model, ["avx2"], tmp_path, choice=choice, cache=cache)
    assert len(relax_builds) == 2
