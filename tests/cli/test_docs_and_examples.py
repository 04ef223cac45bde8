"""Documentation that is up to date, examples that run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return load(ROOT / "docs" / "build.py")


def test_the_ir_reference_is_up_to_date(docs):
    assert docs.main(["--check"]) == 0, "run docs/build.py --reference"


def test_the_check_finds_a_stale_reference(docs, tmp_path, monkeypatch, capsys):
    stale = tmp_path / "ir-reference.md"
    stale.write_text(docs.REFERENCE.read_text(encoding="utf-8") + "\n")
    monkeypatch.setattr(docs, "REFERENCE", stale)
    assert docs.main(["--check"]) == 1
    assert "--reference" in capsys.readouterr().err


def test_every_page_is_built(docs, tmp_path):
    assert docs.main(["-o", str(tmp_path)]) == 0
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages == set(docs.PAGES)
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == pages
    page = (tmp_path / "concepts.html").read_text()
    assert "<table>" in page
    assert 'href="ir-reference.html"' in page


def test_broken_links_are_found(docs):
    texts = {"a": "# A\n[x](b.md) [y](b.md#part) [z](b.md#none) [w](gone.md)", "b": "# B\n## Part"}
    assert docs.broken_links(texts) == ["a.md: b.md#none", "a.md: gone.md"]


def test_links_of_the_other_documents():
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in load(ROOT / "docs" / "build.py").LINK.findall(text):
            if "://" not in target:
                assert (ROOT / target.partition("#")[0]).exists(), f"{name}: {target}"


EXAMPLES = {"maddness_matmul.py": 0.9, "compile_mlp.py": 0.7, "chained_cnn.py": 0.8}
#: Tested in tests/examples.
OTHERS = {
    "accuracy_against_time.py",
    "compile_minilm.py",
    "distributed_sampling.py",
    "figure1_sampling_error.py",
    "figure4_projections.py",
    "finetune_cnn.py",
    "finetune_digits.py",
    "finetune_minilm.py",
    "itlumm_figures.py",
    "lookupffn_mlm.py",
    "sampled_training.py",
    "weight_codebooks.py",
}


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, *OTHERS}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, capsys):
    assert load(ROOT / "examples" / name).main(["--rows", "1500"]) > EXAMPLES[name]
    assert capsys.readouterr().out
