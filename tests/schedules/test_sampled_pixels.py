"""How convolutions pack pixels: end to end, by runs, or one by one; over the ends of images."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedules.harness import built
from tests.schedules.test_sampled_conv2d import Conv, assert_conv, images

pytestmark = pytest.mark.one_in(3)

#: A stride of 2; rows of 5 pixels, the fewest that go by runs; of 4 and a stride of 3, which do
#: not; an output that is smaller than a chunk; windows that lie outside the image.
SHAPES = [
    Conv(3, (9, 33), 7, stride=(2, 2)),
    Conv(3, (7, 9), 13, (3, 3), stride=(2, 2), padding=(2, 2), dilation=(1, 2)),
    Conv(4, (5, 5), 6),
    Conv(4, (4, 4), 6),
    Conv(2, (10, 50), 5, stride=(3, 3)),
    Conv(8, (3, 3), 4, padding=(0, 0), groups=2),
    Conv(2, (3, 6), 3, (1, 1), padding=(4, 5)),
    Conv(5, (6, 16), 6, (1, 1), padding=(0, 0)),
]


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_way_to_pack_pixels(case: Conv) -> None:
    module, rng = case.module(), np.random.default_rng(case.outputs)
    _, call = built(module, "avx2")
    for count in (1, 3, 20):
        for taken in sorted({1, case.per_group}):
            assert_conv(call, module, images(rng, case, count, taken))


@pytest.mark.isa("avx2")
def test_the_ends_of_memory_are_not_crossed() -> None:
    """Masked loads start before the first image and end behind the last: nothing is read there."""
    import mmap

    case = Conv(1, (16, 64), 3, padding=(3, 3), kernel=(7, 7))  # one page of float32
    module, rng = case.module(), np.random.default_rng(0)
    _, call = built(module, "avx2")
    given = images(rng, case, 1, 1)
    size = mmap.PAGESIZE
    if size != given[0].nbytes:
        pytest.skip("pages have another size")
    room = mmap.mmap(-1, 3 * size)
    _forbid(room, 0, size)
    _forbid(room, 2 * size, size)
    x = np.frombuffer(room, np.float32, size // 4, size).reshape(given[0].shape)
    x[:] = given[0]
    assert_conv(call, module, [x, *given[1:]])


def _forbid(room: object, start: int, size: int) -> None:
    """Make any access to some pages a fault."""
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(room, start))  # type: ignore[arg-type]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):
        pytest.skip("pages cannot be protected here")
