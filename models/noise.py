"""Dropout's random numbers, each a function of (seed, epoch, batch, place) and nothing else.

A generator with a state would make a trial's masks depend on who else draws from it. Here a trial
draws the same ones alone, in a pack of any width, after a pause, and on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.seeding import derive_seed

_LEVELS = 1 << 16


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
    bits = random_bits(keys, batches, rows * width).reshape(len(keys), rows, width)
    dropped = (dropout * _LEVELS).round().clamp_(max=_LEVELS - 1)
    keeps = bits >= (dropped - _LEVELS // 2).to(torch.int32)[:, None, None]
    return keeps * (_LEVELS / (_LEVELS - dropped))[:, None, None]
