"""Operations between stages: gather patches, reorder, elementwise on whole tensors.

They move bytes, one scalar at a time where the order changes; LLVM vectorises the inner loops
that are contiguous.
"""

from __future__ import annotations

from lutcc.ir.module import Operation
from lutcc.schedules.x86.emit import Expr, View, bind, both, const, i64, loop, select, splat


def _pair(op: Operation, name: str) -> tuple[int, int]:
    value = op.attr(name)
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


def emit_im2col(op: Operation, source: View, target: View, image: Expr) -> None:
    """Write the patches of one image as rows (N*OH*OW, C*kh*kw), zeros outside."""
    channels, height, width = op.operands[0].type.sizes(1)
    (kh, kw), (sh, sw) = _pair(op, "kernel"), _pair(op, "stride")
    (ph, pw), (dh, dw) = _pair(op, "padding"), _pair(op, "dilation")
    oh = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    patch = channels * kh * kw
    with loop(oh) as y, loop(ow) as x:
        row = bind(((i64(image) * oh + y) * ow + x) * patch)
        with loop(channels) as c, loop(kh) as i:
            py = bind(y * sh + i * dh - ph)
            inside_y = both(py >= i64(0), py < i64(height))
            base = bind(((i64(image) * channels + c) * height + py) * width)
            with loop(kw) as j:
                px = bind(x * sw + j * dw - pw)
                inside = both(inside_y, both(px >= i64(0), px < i64(width)))
                # an address that is always valid: the load may run before the choice
                at = select(inside, base + px, i64(0))
                value = select(inside, source.load(at), const(0.0, "float32"))
                target.store(row + (c * kh + i) * kw + j, value)


def emit_rows_to_nchw(op: Operation, source: View, target: View, image: Expr) -> None:
    """Write one image: rows (OH*OW, M) become (M, OH, OW)."""
    columns = op.operands[0].type.size(1)
    pixels = int(op.attr("oh")) * int(op.attr("ow"))  # type: ignore[arg-type]
    with loop(columns) as m, loop(pixels) as p:
        value = source.load((i64(image) * pixels + p) * columns + m)
        target.store((i64(image) * columns + m) * pixels + p, value)


def emit_elementwise(op: Operation, sources: list[View], target: View, first: Expr, count: int):
    """Apply ``relu`` or ``add`` to ``count`` contiguous elements from ``first`` on."""

    def compute(at: Expr, lanes: int) -> None:
        values = [bind(s.load(at, lanes)) for s in sources]
        if op.opcode == "add":
            result = values[0] + values[1]
        else:
            zero = splat(0.0, lanes=lanes) if lanes > 1 else const(0.0, "float32")
            result = select(zero > values[0], zero, values[0])
        target.store(at, result, lanes)

    if count >= 16:
        with loop(count // 16) as k:
            compute(i64(first) + k * 16, 16)
    if count % 16:
        with loop(count % 16) as k:
            compute(i64(first) + count - count % 16 + k, 1)
