"""Convolutions by look-ups in integers: the same bits as in floats, and why a chain is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.codegen.lower import prepare
from lutcc.ir.passes import ImageChains, LookupConvolutions, LookupNote, PoolSums, run_pipeline
from lutcc.ir.passes.image_links import find_links
from tests.ir.image_networks import Conv, images, network

TWO = ((2, 2), (2, 2), (0, 0))


def _int32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def _uint8(values: Any) -> np.ndarray:
    return np.array(values, np.uint8)


def _float32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def _converted(module: ir.Module) -> ir.Module:
    return LookupConvolutions()(module)


def _notes(module: ir.Module) -> list[LookupNote]:
    notes: list[LookupNote] = []
    run_pipeline(module, notes=notes)
    return notes


def _same(module: ir.Module, x: np.ndarray) -> ir.Module:
    """Check that the prepared module gives the same bits, and return it."""
    prepared = prepare(module)
    (want,), (got,) = ir.interpret(module, [x]), ir.interpret(prepared, [x])
    np.testing.assert_array_equal(got, want)
    return prepared


@st.composite
def layers(draw: st.DrawFn) -> list[Conv]:
    found = []
    for _ in range(draw(st.integers(2, 3))):
        kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        pools = (None, TWO, ((3, 2), (2, 1), (1, 1)))
        found.append(
            Conv(
                draw(st.integers(1, 5)),
                draw(st.integers(1, 4)),
                kernel,
                (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
                (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                (draw(st.integers(1, 2)), 1),
                draw(st.integers(1, 3)),
                draw(st.sampled_from(["relu", "none", "hardswish"])),
                draw(st.booleans()),
                draw(st.sampled_from(pools)),
                draw(st.sampled_from(["uint8", "int8"])),
            )
        )
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers(), st.integers(0, 2**32 - 1))
def test_any_network_gives_the_same_bits(convs: list[Conv], seed: int) -> None:
    rng, shape = np.random.default_rng(seed), (2, 13, 14)
    try:
        module = network(rng, shape, convs)
    except ir.VerifyError:
        reject()  # a window that does not fit what is left of the image
    _same(module, images(rng, 2, shape))


def test_a_chain_becomes_one_function_without_patches_or_floats() -> None:
    rng, shape = np.random.default_rng(0), (3, 9, 9)
    convs = [Conv(8, 3, pool=TWO, falling=False), Conv(6, 8, falling=False), Conv(5, 6)]
    module = network(rng, shape, convs)
    prepared = _same(module, images(rng, 2, shape))
    (function,) = (f for f in prepared.functions if f.name != "main")
    opcodes = [op.opcode for op in function.body if op.opcode != "constant"]
    assert opcodes.count("lut_conv2d") == 3
    assert opcodes.count("lut_dequantize") == 1, "only the last one's sums become floats"
    patches = [op for f in prepared.functions for op in f.body if op.opcode == "im2col"]
    assert [op.attr("kernel") for op in patches] == [(1, 1)], "channels are put last, no more"
    links, cuts = find_links(_converted(module))
    assert len(links) == 2
    assert not cuts
    notes = _notes(module)
    assert [note.integers for note in notes] == [True, True, False]
    assert notes[0].behind == ("relu", "max_pool2d")


@pytest.mark.parametrize(("size", "joins"), [(8, True), (230, False)])
def test_a_small_exact_convolution_in_front_joins(size: int, joins: bool) -> None:
    rng, shape = np.random.default_rng(7), (3, size, size)
    module = network(rng, shape, [Conv(4, 5), Conv(3, 4)], exact=8)
    function, main = (run_pipeline(module).function(name) for name in ("images0", "main"))
    assert [any(op.opcode == "conv2d" for op in f.body) for f in (function, main)] == [
        joins,
        not joins,
    ]
    if joins:
        _same(module, images(rng, 2, shape))


def test_channels_that_no_tree_reads_are_not_computed() -> None:
    rng, shape = np.random.default_rng(1), (2, 7, 7)
    module = network(rng, shape, [Conv(7, 2), Conv(3, 40, dead=3)])
    prepared = _same(module, images(rng, 3, shape))
    (function,) = (f for f in prepared.functions if f.name != "main")
    first = next(op for op in function.body if op.opcode == "lut_conv2d")
    assert first.results[0].type.shape[1] == 4
    assert (_notes(module)[0].columns, _notes(module)[0].computed) == (7, 4)


def test_falling_channels_are_mirrored_and_pooled_as_such() -> None:
    rng, shape = np.random.default_rng(2), (2, 8, 8)
    module = network(rng, shape, [Conv(6, 5, pool=TWO), Conv(3, 20)])
    ((link,), cuts) = find_links(_converted(module))
    assert link.mapped is not None
    assert not cuts
    assert link.mapped.mirrored.any()
    assert not link.mapped.mirrored.all()
    _same(module, images(rng, 3, shape))


def _pair(
    offset: float, thresholds: list[float], padding: tuple[int, int], step: float = 1 / 16
) -> ir.Module:
    """Return two convolutions of one channel: y = sum / 16 + offset of sums 0, 16, 32 and so on."""
    b, n = ir.Builder("main"), ir.Sym("n")
    x = b.param("x", ir.TensorType((n, 1, 4, 4), "float32"))
    lut = _uint8([[[0], [32]]])
    dims, zero = b.constant("d", _int32([[4]])), b.constant("v", _float32([[0, 0]]))
    rows = b.op("im2col", x, kernel=(3, 3), padding=(1, 1))
    acc = b.op("lut_accumulate", b.op("tree_encode", rows, dims, zero), b.constant("t", lut))
    scale = b.constant("s", _float32([step]))
    y = b.op("lut_dequantize", acc, scale, b.constant("o", _float32([offset])))
    rows = b.op("im2col", b.op("rows_to_nchw", y, oh=4, ow=4), kernel=(3, 3), padding=padding)
    both = b.constant("v1", _float32([[0, t] for t in thresholds]))
    corners = b.constant("d1", _int32([[0]] * len(thresholds)))
    table = b.constant("t1", _uint8([[[0], [2**i]] for i in range(len(thresholds))]))
    b.returns(b.op("lut_accumulate", b.op("tree_encode", rows, corners, both), table))
    return b.module()


def test_what_lies_outside_the_image_takes_the_branches_of_zero() -> None:
    module = _pair(-1.0, [-0.5, 0.5], (1, 1))  # y = -1, ..., 0, ..., 1: some sum gives 0
    ((link,), cuts) = find_links(_converted(module))
    assert link.mapped is not None
    assert not cuts
    assert link.mapped.outside[0].tolist() == [9], "above the sums up to 8, whose y is -0.5"
    _same(module, images(np.random.default_rng(0), 3, (1, 4, 4)))


def test_a_chain_is_cut_where_no_sum_stands_for_zero() -> None:
    near = [-0.01, 0.01]  # y = ..., -0.03125, 0.03125, ...: none lies between
    links, (cut,) = find_links(_converted(_pair(-1.03125, near, (1, 1))))
    assert not links
    assert "which is what trees read outside the image" in cut.reason
    links, cuts = find_links(_converted(_pair(-1.03125, near, (0, 0))))
    assert (len(links), cuts) == (1, []), "without padding nobody reads it"
    for padding in ((1, 1), (0, 0)):
        _same(_pair(-1.03125, near, padding), images(np.random.default_rng(0), 3, (1, 4, 4)))


@pytest.mark.parametrize("offset", [0.5, -2.5, 40.0])
@pytest.mark.parametrize("scale", [1 / 16, -1 / 16])
def test_zero_beyond_all_outputs_does_not_cut_a_chain(offset: float, scale: float) -> None:
    """Of y = 0.5 ... 2.5, all lie on one side of -0.1 and 0.1, and the padding between them."""
    module = _pair(offset, [-0.1, 0.1], (1, 1), scale)
    (links, cuts) = find_links(_converted(module))
    assert (len(links), cuts) == (1, [])
    _same(module, images(np.random.default_rng(0), 3, (1, 4, 4)))


def test_a_chain_is_cut_by_other_readers() -> None:
    rng, shape = np.random.default_rng(3), (2, 6, 6)
    module = network(rng, shape, [Conv(4, 3), Conv(3, 4)])
    value = next(v for op in module.main.body for v in op.results if op.opcode == "lut_dequantize")
    main = ir.Function("main", module.main.params, module.main.body, (*module.main.returns, value))
    module = ir.Module((main,), module.constants)
    links, (cut,) = find_links(_converted(module))
    assert not links
    assert cut.reason == f"%{value.name} is returned too"
    first, last = _notes(module)
    assert (first.integers, first.cut, last.cut) == (False, True, False)


def test_one_channel_that_turns_cuts_the_chain() -> None:
    rng, shape = np.random.default_rng(4), (2, 6, 6)
    module = network(rng, shape, [Conv(4, 6, activation="gelu"), Conv(3, 30)])
    links, cuts = find_links(_converted(module))
    assert not links
    assert "neither rises nor falls" in cuts[0].reason
    _same(module, images(rng, 2, shape))


@pytest.mark.parametrize("falling", [False, True])
def test_a_pooling_behind_the_last_layer_takes_sums_if_they_rise(falling: bool) -> None:
    rng, shape = np.random.default_rng(5), (2, 6, 6)
    module = network(rng, shape, [Conv(9, 4, falling=falling, pool=TWO)])
    pooled = PoolSums()(ImageChains()(_converted(module)))
    kinds = {op.operands[0].type.dtype for op in pooled.main.body if op.opcode == "max_pool2d"}
    assert kinds == {"float32" if falling else "int32"}
    _same(module, images(rng, 2, shape))


def test_a_linear_layer_behind_a_flattening_is_a_convolution_of_the_whole_image() -> None:
    b, n = ir.Builder("main"), ir.Sym("n")
    rng, shape = np.random.default_rng(6), (2, 6, 5)
    body = network(rng, shape, [Conv(4, 3)])
    names = {body.main.params[0].name: b.param("x", ir.TensorType((n, *shape), "float32"))}
    for op in body.main.body:
        if op.opcode == "constant":
            value = b.constant(op.results[0].name, body.constants[str(op.attr("ref"))])
        else:
            attrs: dict[str, Any] = dict(op.attrs)
            value = b.op(op.opcode, *(names[v.name] for v in op.operands), **attrs)
        names[op.results[0].name] = value
    flat = b.op("reshape", names[body.main.returns[0].name], shape=(n, 4 * 30))
    dims = b.constant("dl", rng.integers(0, 120, (5, 3)).astype(np.int32))
    codes = b.op("tree_encode", flat, dims, b.constant("vl", rng.random((5, 8), np.float32)))
    lut = b.constant("tl", rng.integers(0, 256, (5, 8, 7)).astype(np.uint8))
    b.returns(b.op("lut_accumulate", codes, lut))
    prepared = _same(b.module(), images(rng, 3, shape))
    kernels = [
        op.attr("kernel") for f in prepared.functions for op in f.body if op.opcode == "lut_conv2d"
    ]
    assert kernels == [(3, 3), (6, 5)]
