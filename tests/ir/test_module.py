"""Nodes, builder, layouts, documentation and the package itself."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import VerifyError
from lutcc.ir.docs import op_table_markdown, passes_markdown
from lutcc.ir.passes import PIPELINE
from lutcc.ir.types import element_count
from tests.ir.models import N, modules

ROOT = Path(__file__).resolve().parents[2]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(["row_major", "column_major", "row_blocked"]),
    st.integers(1, 17),
    st.integers(1, 5),
)
def test_layouts_store_every_element(n: int, f: int, kind: str, rows: int, inner: int) -> None:
    blocked = kind == "row_blocked"
    layout = ir.Layout(kind, rows, inner) if blocked else ir.Layout(kind)  # type: ignore[arg-type]
    x = np.arange(1, n * f + 1, dtype=np.int32).reshape(n, f)
    stored = ir.to_storage(x, layout)
    assert stored.shape == layout.storage_shape(x.shape)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(ir.from_storage(stored, layout, x.shape), x)
    assert stored.sum() == x.sum()  # tails are zero
    flat = stored.reshape(-1)
    for i, j in ((0, 0), (n - 1, f - 1), (n // 2, f // 3)):
        if kind == "row_major":
            at = i * f + j
        elif kind == "column_major":
            at = j * n + i
        else:
            groups = -(-f // inner)
            at = ((i // rows * groups + j // inner) * rows + i % rows) * inner + j % inner
        assert flat[at] == x[i, j]


def test_element_count_compares_for_every_value() -> None:
    n, m = ir.Sym("n"), ir.Sym("m")
    assert element_count((4 * n, 6)) == element_count((n, 24)) == (24, ("n",))
    assert element_count((n, m, n)) == element_count((n, n, m))
    assert element_count((n, n)) != element_count((n, m))
    assert element_count(()) == (1, ())


def test_constants_are_equal_bit_by_bit() -> None:
    nan = np.array([np.nan, -0.0], np.float32)
    assert ir.Constants({"c": nan}) == ir.Constants({"c": nan.copy()})
    assert ir.Constants({"c": nan}) != ir.Constants({"c": np.array([np.nan, 0.0], np.float32)})
    assert ir.Constants({"c": nan}) != ir.Constants({"c": nan.reshape(2, 1)})
    assert ir.Constants({"c": nan}) != ir.Constants({"c": nan.view(np.int32)})
    assert ir.Constants({"c": nan}) != ir.Constants({"d": nan})
    assert hash(ir.Constants({"c": nan})) == hash(ir.Constants({"c": nan.copy()}))
    assert ir.Constants() != {}


def test_modules_own_their_constants() -> None:
    array = np.zeros(3, np.float32)
    b = ir.Builder("main")
    b.returns(b.constant("c", array))
    module = b.module()
    array[:] = 7
    assert (module.constant("c") == 0).all()
    with pytest.raises(ValueError, match="read-only"):
        module.constant("c")[0] = 1
    with pytest.raises(VerifyError, match="the module has no constant 'd'"):
        module.constant("d")
    with pytest.raises(VerifyError, match="no function 'mian'; did you mean 'main'"):
        module.function("mian")


def test_nodes_are_frozen_and_hashable() -> None:
    b = ir.Builder("main")
    b.returns(b.op("relu", b.param("x", ir.TensorType((N, 2), "float32"))))
    module = b.module()
    assert hash(module) == hash(ir.parse(ir.to_text(module)))
    for node, field in (
        (module, "functions"),
        (module.main, "name"),
        (module.main.body[0], "opcode"),
    ):
        with pytest.raises(AttributeError):
            setattr(node, field, "x")


@settings(deadline=None, max_examples=15)
@given(modules())
def test_copies_are_equal(module: ir.Module) -> None:
    """Modules travel to build processes."""
    assert pickle.loads(pickle.dumps(module)) == module
    assert copy.deepcopy(module) == module


def test_replace_and_with_constants() -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((2,), "float32"))
    b.returns(b.op("add", x, b.constant("c", np.ones(2, np.float32))))
    module = b.module()
    two = module.with_constants({"c": np.full(2, 2, np.float32)})
    assert (ir.interpret(two, [np.zeros(2, np.float32)])[0] == 2).all()
    shorter = module.replace(ir.Function("main", (x,), (), (x,)))
    assert shorter.main.body == ()
    extra = ir.Function("f", (x,), (), (x,))
    assert [f.name for f in module.replace(extra).functions] == ["main", "f"]


def renamed(module: ir.Module) -> ir.Module:
    text = ir.to_text(module)
    for old in ("x", "y", "dims", "main.w"):
        text = text.replace(f"%{old}", f"%other_{old}")
    return ir.parse(text)


def test_equality_up_to_names() -> None:
    def build(names: tuple[str, str, str], order: int = 1, scale: float = 1) -> ir.Module:
        b = ir.Builder("main")
        x = b.param(names[0], ir.TensorType((N, 2), "float32"))
        arrays = {names[1]: np.full(2, scale, np.float32), names[2]: np.zeros(2, np.float32)}
        values = {k: b.constant(k, arrays[k]) for k in list(arrays)}
        b.returns(b.op("affine", x, values[names[1]], values[names[2]], name=names[0] + "_out"))
        m = b.module()
        return ir.Module(m.functions, dict(list(m.constants.items())[::order]))

    one, two = build(("x", "s", "t")), build(("in", "scale", "shift"), order=-1)
    assert one != two
    assert one.canonical() == two.canonical()
    ir.verify(two.canonical())
    assert one.canonical() != build(("x", "s", "t"), scale=2).canonical()
    with_call = ir.parse("""lutcc.ir 1
        func @main(%x: float32[n]) { %y = call(%x) {callee = "foo"} : float32[n] return %y }
        func @foo(%x: float32[n]) { return %x }""")
    other = ir.parse(ir.to_text(with_call).replace("foo", "bar"))
    assert with_call != other
    assert with_call.canonical() == other.canonical()
    ir.verify(with_call.canonical())


def test_builder_names() -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 2), "float32"))
    c = b.constant("x", np.ones(2, np.float32))
    assert (x.name, c.name) == ("x", "x_1")
    assert b.constant("x", np.ones(2, np.float32)) is c
    with pytest.raises(VerifyError, match="'x' is defined twice with different elements"):
        b.constant("x", np.zeros(2, np.float32))
    with pytest.raises(VerifyError, match="%x is defined twice"):
        b.param("x", x.type)
    y = b.op("affine", x, c, c)
    assert [b.op("relu", y).name, b.op("relu", y).name, b.op("relu", y, name="z").name] == [
        "y_1",
        "y_2",
        "z",
    ]
    other = ir.Builder("f").param("q", x.type)
    with pytest.raises(VerifyError, match="%q is not a value of this function"):
        b.op("relu", other)
    with pytest.raises(VerifyError, match="returned value 0 %q"):
        b.returns(other)
    with pytest.raises(VerifyError, match="function @main: nothing is returned"):
        b.module()


def test_builder_calls_functions() -> None:
    inner = ir.Builder("scale")
    x = inner.param("x", ir.TensorType((N, 2), "float32"))
    c = inner.constant("c", np.full(2, 3, np.float32))
    inner.returns(inner.op("affine", x, c, c))
    b = ir.Builder("main")
    b.add_function(inner.function(), inner.constants)
    (y,) = b.call("scale", b.param("x", ir.TensorType((4, 2), "float32")))
    b.returns(y)
    assert y.type.shape == (4, 2)
    got = ir.interpret(b.module(), [np.ones((4, 2), np.float32)])[0]
    assert (got == 6).all()
    with pytest.raises(VerifyError, match="@scale is defined twice"):
        b.add_function(inner.function())


def test_documentation_covers_every_op_and_pass() -> None:
    text = op_table_markdown()
    for opdef in ir.OPS.values():
        section = text.split(f"### {opdef.name}\n")[1].split("\n### ")[0]
        for part in (*opdef.operands, *opdef.attrs):
            assert f"| `{part.name}` |" in section
        for label in ("**Definition.**", "**Cost.**", "**Backends.**", "**Source.**"):
            assert label in section
        assert f"(#{opdef.name})" in text
    for step in PIPELINE:
        assert f"**{type(step).__name__}**" in text
        assert f"**{type(step).__name__}**" in passes_markdown()
    assert text.startswith("# ")
    assert "lutcc.ir 1" in text


def test_no_heavy_imports() -> None:
    """lutcc.ir knows nothing of TVM, Triton or torch."""
    code = (
        "import sys, lutcc.ir, lutcc.ir.passes, lutcc.ir.docs;"
        "bad = {'tvm', 'torch', 'triton', 'scipy'} & set(sys.modules); sys.exit(str(bad) if bad "
        "else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_package_has_one_name() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import ir"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode != 0
    assert "must not be imported as 'ir'" in run.stderr
