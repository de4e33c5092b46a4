"""Dropout's random numbers, each a function of (seed, epoch, batch, place) and nothing else.

A generator with a state would make a trial's masks depend on who else draws from it. Here a trial
draws the same ones alone, in a pack of any width, after a pause, and on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.seeding import derive_seed

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch brings it where it can be used: Linux, and a CUDA build
    triton = None

_LEVELS = 1 << 16
_BLOCK = 1024


def epoch_key(seed: int, epoch: int) -> int:
    """The key of a trial's masks in an epoch, an int32."""
    return derive_seed(seed, "dropout", epoch) % (1 << 32) - (1 << 31)


def random_bits(keys: Tensor, batches: Tensor, count: int) -> Tensor:
    """`k x count` int16, uniform over all values: a row for each key and batch, both `k`.

    A counter put through the 32-bit mixing function `lowbias32` of Wellons (2018, "Prospecting
    for hash functions"), whose output bits all depend on all input bits; each gives two numbers.
    """
    pairs = -(-count // 2)
    counter = torch.arange(pairs, dtype=torch.int32, device=keys.device)
    x = (counter + batches.to(torch.int32)[:, None] * pairs) ^ keys[:, None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        # int32 shifts drag the sign along: the mask takes it off.
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        x *= factor
    return x.view(torch.int16)[:, :count]


def keep_factors(keys: Tensor, batches: Tensor, dropout: Tensor, rows: int, width: int) -> Tensor:
    """What inverted dropout multiplies with: 0, or 1 / (1 - p), `k x rows x width`.

    `keys` and `batches` are `k` integers; `dropout` holds the `k` probabilities p, in the type of
    the result, each rounded to a multiple of 2**-16.
    """
    dropped = (dropout * _LEVELS).round().clamp_(max=_LEVELS - 1)
    least, factor = (dropped - _LEVELS // 2).to(torch.int32), _LEVELS / (_LEVELS - dropped)
    if triton is not None and keys.is_cuda and dropout.dtype is not torch.float64:
        kept = keep_fused(keys, batches, least, factor, rows * width)
    else:
        kept = keep_separate(keys, batches, least, factor, rows * width)
    return kept.view(len(keys), rows, width)


def keep_separate(
    keys: Tensor, batches: Tensor, least: Tensor, factor: Tensor, count: int
) -> Tensor:
    """`k x count`: a row's factor where its bits are at least so much, else 0."""
    return (random_bits(keys, batches, count) >= least[:, None]) * factor[:, None]


def keep_fused(keys: Tensor, batches: Tensor, least: Tensor, factor: Tensor, count: int) -> Tensor:
    """The same by one kernel, on a GPU: a dozen passes were a third of a step."""
    out = factor.new_empty(len(keys), count)
    grid = (triton.cdiv(count, _BLOCK), len(keys))
    _keep[grid](keys, batches.to(torch.int32), least, factor, out, count, BLOCK=_BLOCK)
    return out


if triton is not None:

    @triton.jit(do_not_specialize=("count",))
    def _keep(  # type: ignore[no-untyped-def]
        keys, batches, least, factor, out, count, BLOCK: tl.constexpr
    ):
        """A block of a row, by the same arithmetic as `random_bits`."""
        lane = tl.program_id(1)
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = (at // 2 + tl.load(batches + lane) * ((count + 1) // 2)) ^ tl.load(keys + lane)
        x ^= (x >> 16) & 0xFFFF
        x *= 0x7FEB352D
        x ^= (x >> 15) & 0x1FFFF
        x *= -2073254261  # 0x846CA68B as an int32
        x ^= (x >> 16) & 0xFFFF
        half = tl.where(at % 2 == 0, x << 16, x) >> 16  # with its sign
        kept = tl.where(half >= tl.load(least + lane), tl.load(factor + lane), 0.0)
        tl.store(out + lane.to(tl.int64) * count + at, kept, mask=at < count)
