"""The patches of images that a 3 × 3 convolution multiplies its weights with, and back.

On a GPU each way is one Triton kernel, which pads on the fly: PyTorch's own way there, a strided
copy and `unfold`'s backward, took two fifths of a pack's step (`models/README.md` has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch brings it where it can be used: Linux, and a CUDA build
    triton = None

_BLOCK = 1024
_TAPS = 9
_ALIGNED = 8  # rows, with zeros: in half precision products of other sizes are slow ones


def patches(x: Tensor, stride: int) -> Tensor:
    """With padding 1, `k x c x n x h x w` as `k x (c * 9) x (n * h' * w')`.

    On a GPU rows of zeros may follow, which zeros are to be multiplied with.
    """
    if triton is not None and x.is_cuda and x.dtype is not torch.float64:
        if torch.is_autocast_enabled("cuda"):
            x = x.to(torch.get_autocast_dtype("cuda"))  # before there are nine times as many
        return gathered(x, stride)
    return unfolded(x, stride)


def gathered(x: Tensor, stride: int) -> Tensor:
    """The same by the kernels below, on a GPU."""
    return _Patches.apply(x, stride)  # type: ignore[no-any-return]


def unfolded(x: Tensor, stride: int) -> Tensor:
    """The same by PyTorch's own operations, on any device."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(3, 3, stride).unfold(4, 3, stride)
    n, height, width = windows.shape[2:5]
    return windows.permute(0, 1, 5, 6, 2, 3, 4).reshape(len(x), -1, n * height * width)


class _Patches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        k, c, n, height, width = ctx.shape = x.shape
        rows, columns = c * _TAPS, n * -(-height // stride) * -(-width // stride)
        aligned = _ALIGNED if x.element_size() == 2 else 1
        out = x.new_empty(k, -(-rows // aligned) * aligned, columns)
        out[:, rows:].zero_()
        ctx.numbers = (*x.shape[1:], -(-height // stride), -(-width // stride), out.shape[1])
        ctx.stride = stride
        grid = (k * c, triton.cdiv(columns, _BLOCK))  # of the second axis CUDA takes 65,535
        _gather[grid](x.contiguous(), out, *ctx.numbers, STRIDE=stride, BLOCK=_BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        slope = gradients[0].contiguous()
        k, c, n, height, width = ctx.shape
        out = slope.new_empty(ctx.shape)
        cells = n * (height // ctx.stride + 1) * (width // ctx.stride + 1)
        grid = (k * c, triton.cdiv(cells, _BLOCK))
        _scatter[grid](slope, out, *ctx.numbers, STRIDE=ctx.stride, BLOCK=_BLOCK)
        return out, None


if triton is not None:
    # One compilation for each type and stride, whatever the sizes.
    _SIZES = ("c", "n", "height", "width", "out_height", "out_width", "rows")

    @triton.jit(do_not_specialize=_SIZES)
    def _gather(  # type: ignore[no-untyped-def]
        x,
        out,
        c,
        n,
        height,
        width,
        out_height,
        out_width,
        rows,
        STRIDE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """A block of columns of the nine rows that a channel of a network gives."""
        plane = tl.program_id(0).to(tl.int64)
        columns = n * out_height * out_width
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        image = column // (out_height * out_width)
        top = column // out_width % out_height * STRIDE - 1
        left = column % out_width * STRIDE - 1
        x += plane * n * height * width
        out += (plane // c * rows + plane % c * 9) * columns
        for tap in tl.static_range(9):
            row, place = top + tap // 3, left + tap % 3
            inside = (row >= 0) & (row < height) & (place >= 0) & (place < width)
            value = tl.load(
                x + (image * height + row) * width + place,
                mask=inside & (column < columns),
                other=0.0,
            )
            tl.store(out + tap * columns + column, value, mask=column < columns)

    @triton.jit(do_not_specialize=_SIZES)
    def _scatter(  # type: ignore[no-untyped-def]
        slope,
        out,
        c,
        n,
        height,
        width,
        out_height,
        out_width,
        rows,
        STRIDE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """A block of a channel's cells of STRIDE × STRIDE pixels: of each the sum over its patches.

        Patches lie a stride apart, and so do the places that a pixel has in them: a cell's pixels
        have all nine among them, and neighbouring cells read neighbouring numbers.
        """
        plane = tl.program_id(0).to(tl.int64)
        columns = n * out_height * out_width
        down, across = height // STRIDE + 1, width // STRIDE + 1
        cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        image = cell // (down * across)
        i, j = cell // across % down, cell % across
        slope += (plane // c * rows + plane % c * 9) * columns
        out += plane * n * height * width
        for y in tl.static_range(STRIDE):
            for x in tl.static_range(STRIDE):
                total = tl.zeros((BLOCK,), tl.float32)
                for a in tl.static_range(y, 3, STRIDE):
                    for b in tl.static_range(x, 3, STRIDE):
                        row, place = i - a // STRIDE, j - b // STRIDE
                        inside = (row >= 0) & (row < out_height) & (place >= 0)
                        inside &= (place < out_width) & (image < n)
                        total += tl.load(
                            slope
                            + (a * 3 + b) * columns
                            + (image * out_height + row) * out_width
                            + place,
                            mask=inside,
                            other=0.0,
                        ).to(tl.float32)
                row, place = i * STRIDE + y - 1, j * STRIDE + x - 1
                inside = (row >= 0) & (row < height) & (place >= 0) & (place < width) & (image < n)
                tl.store(
                    out + (image * height + row) * width + place,
                    total.to(out.dtype.element_ty),
                    mask=inside,
                )
