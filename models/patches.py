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
    return _Patches.apply(x, stride)  # type: ignore[no-any-return, no-untyped-call]


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
        grid = (triton.cdiv(columns, _BLOCK), k * c)
        _gather[grid](x.contiguous(), out, *ctx.numbers, STRIDE=stride, BLOCK=_BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        slope = gradients[0].contiguous()
        k, c, n, height, width = ctx.shape
        out = slope.new_empty(ctx.shape)
        grid = (triton.cdiv(n * height * width, _BLOCK), k * c)
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
        plane = tl.program_id(1).to(tl.int64)
        columns = n * out_height * out_width
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
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
        """A block of a channel's pixels: of each the sum over the patches that it is in."""
        plane = tl.program_id(1).to(tl.int64)
        columns = n * out_height * out_width
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        image = pixel // (height * width)
        row = pixel // width % height + 1
        place = pixel % width + 1
        slope += (plane // c * rows + plane % c * 9) * columns
        total = tl.zeros((BLOCK,), tl.float32)
        # Patches lie a stride apart, and so do the places that a pixel has in them.
        for a in tl.static_range(-(-3 // STRIDE)):
            for b in tl.static_range(-(-3 // STRIDE)):
                down, right = row % STRIDE + a * STRIDE, place % STRIDE + b * STRIDE
                i, j = row // STRIDE - a, place // STRIDE - b
                inside = (down < 3) & (right < 3) & (i >= 0) & (j >= 0)
                inside &= (i < out_height) & (j < out_width)
                column = (image * out_height + i) * out_width + j
                total += tl.load(
                    slope + (down * 3 + right) * columns + column,
                    mask=inside & (pixel < n * height * width),
                    other=0.0,
                ).to(tl.float32)
        tl.store(
            out + plane * n * height * width + pixel,
            total.to(out.dtype.element_ty),
            mask=pixel < n * height * width,
        )
