"""Batch normalisation and ReLU of many channels, forwards and backwards.

On a GPU each way is one Triton kernel with a program for each channel, which reads it from memory
once; PyTorch's own take five kernels and three times as long (`models/README.md`).
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

_BLOCK = 2048


def normalised(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """ReLU of c normalised channels, `c x l` as x is, and their means and variances, `2 x c`.

    `scale` and `shift` are c. The variances are the unbiased ones, which running ones are made of.
    """
    if triton is not None and x.is_cuda and x.dtype is not torch.float64:
        return fused(x, scale, shift, eps)
    return separate(x, scale, shift, eps)


def separate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's own operations, on any device."""
    out, mean, inverse = torch.native_batch_norm(x[None], scale, shift, None, None, True, 0.0, eps)
    return F.relu(out[0]), _statistics(mean, inverse, x.shape[1], eps)


def fused(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same by the kernels below, on a GPU."""
    out, mean, inverse = _Normalise.apply(x, scale, shift, eps)
    return out, _statistics(mean, inverse, x.shape[1], eps)


def _statistics(mean: Tensor, inverse: Tensor, count: int, eps: float) -> Tensor:
    variance = (inverse.detach() ** -2 - eps) * (count / max(1, count - 1))
    return torch.stack([mean.detach(), variance])


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, (channels, count) = x.contiguous(), x.shape
        out = torch.empty_like(x)
        mean = torch.empty(channels, device=x.device)
        inverse = torch.empty(channels, device=x.device)
        _forward[(channels,)](x, scale, shift, out, mean, inverse, count, eps, BLOCK=_BLOCK)
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        ctx.mark_non_differentiable(mean, inverse)
        return out, mean, inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        slope = gradients[0].contiguous()
        out, by_scale, by_shift = (torch.empty_like(t) for t in (x, scale, shift))
        _backward[(len(x),)](
            *(x, slope, scale, shift, mean, inverse, out, by_scale, by_shift, x.shape[1]),
            BLOCK=_BLOCK,
        )
        return out, by_scale, by_shift, None


if triton is not None:

    @triton.jit(do_not_specialize=("count",))
    def _forward(  # type: ignore[no-untyped-def]
        x, scale, shift, out, mean, inverse, count, eps, BLOCK: tl.constexpr
    ):
        """A channel: its mean, its variance about that, and what comes of it."""
        channel = tl.program_id(0).to(tl.int64)
        x += channel * count
        out += channel * count
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            total += tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
        centre = tl.sum(total) / count
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            apart = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32) - centre
            total += tl.where(at < count, apart * apart, 0.0)
        factor = 1 / tl.sqrt(tl.sum(total) / count + eps)
        tl.store(mean + channel, centre)
        tl.store(inverse + channel, factor)
        factor *= tl.load(scale + channel).to(tl.float32)
        level = tl.load(shift + channel).to(tl.float32)
        for begin in range(0, count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            value = (tl.load(x + at, mask=at < count).to(tl.float32) - centre) * factor + level
            # Not by max, which would make a number of what is none.
            value = tl.where(value < 0, 0.0, value)
            tl.store(out + at, value.to(out.dtype.element_ty), mask=at < count)

    @triton.jit(do_not_specialize=("count",))
    def _backward(  # type: ignore[no-untyped-def]
        x,
        slope,
        scale,
        shift,
        mean,
        inverse,
        out,
        by_scale,
        by_shift,
        count,
        BLOCK: tl.constexpr,
    ):
        """A channel: the slopes by scale and shift, and from these the one by what came in."""
        channel = tl.program_id(0).to(tl.int64)
        x += channel * count
        slope += channel * count
        out += channel * count
        centre = tl.load(mean + channel)
        factor = tl.load(inverse + channel)
        steep = tl.load(scale + channel).to(tl.float32)
        level = tl.load(shift + channel).to(tl.float32)
        shifts = tl.zeros((BLOCK,), tl.float32)
        scales = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            standard = (
                tl.load(x + at, mask=at < count, other=0.0).to(tl.float32) - centre
            ) * factor
            back = tl.load(slope + at, mask=at < count, other=0.0).to(tl.float32)
            back = tl.where(standard * steep + level <= 0, 0.0, back)
            shifts += back
            scales += back * standard
        by_level, by_steep = tl.sum(shifts), tl.sum(scales)
        tl.store(by_shift + channel, by_level.to(by_shift.dtype.element_ty))
        tl.store(by_scale + channel, by_steep.to(by_scale.dtype.element_ty))
        for begin in range(0, count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            standard = (
                tl.load(x + at, mask=at < count, other=0.0).to(tl.float32) - centre
            ) * factor
            back = tl.load(slope + at, mask=at < count, other=0.0).to(tl.float32)
            back = tl.where(standard * steep + level <= 0, 0.0, back)
            back = steep * factor * (back - (by_level + standard * by_steep) / count)
            tl.store(out + at, back.to(out.dtype.element_ty), mask=at < count)
