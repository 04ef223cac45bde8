"""Loaders of text: what they return, and what they say of files that are not as they should be."""

from __future__ import annotations

import pytest

from lutcc.data import text as texts
from lutcc.data.text_stdlib import documentation, load_standard_library
from lutcc.errors import InputError

WIKI = (
    " \n = Robert Boulter = \n \n Robert Boulter is an actor . \n \n = = Career = = \n \n "
    "x = y = z . \n \n = = = 2006 = = = \n \n Text . \n \n = Du Fu = \n \n A poet . \n \n"
)


def test_the_standard_library_is_the_same_text_every_time():
    first, second = (load_standard_library(max_bytes=400_000) for _ in range(2))
    assert first.digest() == second.digest()
    assert not set(first.train) & set(first.validation)
    size = sum(map(len, first.train + first.validation))
    assert size == 400_000
    assert 0.04 < sum(map(len, first.validation)) / size < 0.2
    assert "standard library" in first.source


def test_the_digest_tells_texts_and_splits_apart():
    a, b = texts.TextSplit(("a", "b"), ("c",), "s"), texts.TextSplit(("ab",), ("c",), "s")
    c = texts.TextSplit(("a",), ("b", "c"), "s")
    assert len({a.digest(), b.digest(), c.digest()}) == 3


def test_the_library_is_read_from_a_folder_without_its_tests_and_tables(tmp_path):
    files = {
        "one.py": '"""First module."""\ndef f():\n    """Do it."""\n',
        "two.py": '"""Second module."""\n# a comment\n',
        "latin.py": '# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n',
        "test/test_one.py": '"""A test."""',
        "site-packages/other.py": '"""Not of the library."""',
        "encodings/cp437.py": '"""A table."""',
        "_sysconfigdata_x.py": "build = {'path': 1}",
        "pydoc_data/topics.py": "topics = {'if': 'The if statement', 'x': None}",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe\x00")  # passed over: the library has some
    parts = load_standard_library(tmp_path)
    assert sorted(parts.train + parts.validation) == sorted(
        [files["one.py"], files["two.py"], files["latin.py"], "The if statement"]
    )
    words = load_standard_library(tmp_path, documentation_only=True)
    assert sorted(words.train + words.validation) == [
        "Café.",
        "First module.\n\nDo it.",
        "Second module.",
        "The if statement",
    ]


def test_a_python_without_sources_is_told(tmp_path):
    with pytest.raises(InputError, match=r"(?s)no sources.*name a text file"):
        load_standard_library(tmp_path)


def test_documentation_of_templates_and_nested_definitions():
    assert documentation("class {{name}}: pass") == ""
    source = 'class A:\n    "A."\n    def f(self):\n        "F."\n        return "no doc"\n'
    assert documentation(source) == "A.\n\nF."


def test_a_folder_of_text_files(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text(f"text {index} " * 20)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    parts = texts.load(tmp_path)
    assert len(parts.train) + len(parts.validation) == 10
    assert len(parts.validation) == 1
    assert texts.load(tmp_path) == parts
    few = texts.load_files(tmp_path, max_bytes=500)
    assert sum(map(len, few.train + few.validation)) == 500


def test_one_file_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {index} of the book\n" for index in range(20000)))
    parts = texts.load(path)
    assert len(parts.train) > 3
    assert len(parts.validation) == 1
    assert all(part.endswith("\n") for part in (*parts.train, *parts.validation))
    assert sum(map(len, parts.train + parts.validation)) == len(path.read_text())


def test_a_small_file_still_has_something_to_hold_out(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("".join(f"line {index}\n" for index in range(30)))
    parts = texts.load(path)
    assert parts.train
    assert parts.validation


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot read"),
        ("empty.txt", b" \n\n", "is empty"),
        (
            "latin.txt",
            b"caf\xe9 au lait\n",
            "is not UTF-8 text: invalid continuation byte at byte 3",
        ),
        ("one-line.txt", b"no line end", "1 documents hold text, and two are needed"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        texts.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "To mend it:" in str(caught.value)


def test_a_folder_without_text(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no file \*\.txt"):
        texts.load(tmp_path)


def test_an_undecodable_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match=r"bad\.txt"):
        texts.load(tmp_path)


def test_a_byte_order_mark_is_not_text(tmp_path):
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfa line\nanother\n")
    assert texts.read_text(path).startswith("a line")


@pytest.mark.parametrize("suffix", ["tokens", "raw"])
def test_wikitext_is_cut_at_titles_only(tmp_path, suffix):
    (tmp_path / f"wiki.train.{suffix}").write_text(WIKI)
    (tmp_path / f"wiki.valid.{suffix}").write_text(WIKI[: len(WIKI) // 2])
    parts = texts.load(tmp_path)
    assert [document.split("=")[1].strip() for document in parts.train] == [
        "Robert Boulter",
        "Du Fu",
    ]
    assert "= = = 2006 = = =" in parts.train[0]
    assert len(parts.validation) == 1
    assert parts.source.endswith("2 articles")


def test_half_a_wikitext(tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(WIKI)
    with pytest.raises(InputError, match=r"wiki\.valid\.tokens or wiki\.valid\.raw"):
        texts.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.7, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(InputError, match="validation_share"):
        texts.split({"a": "x", "b": "y"}, "example", validation_share=share)
