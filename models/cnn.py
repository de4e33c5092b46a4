"""A small convolutional network, quick by design, with knobs for width and depth."""

from __future__ import annotations

import torch
from torch import nn


class CNN(nn.Module):
    """`layers` blocks of 3 × 3 convolution, batch normalisation and ReLU, then one linear layer.

    Blocks halve the image (stride 2, no pooling: the cheapest shape that measured well) and
    multiply the channels by `growth` from `width` on, until the image is 4 × 4 or smaller; further
    blocks keep both. Input is `n x channels x height x width` float, output `n x classes` logits.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        classes: int,
        *,
        width: int,
        layers: int,
        growth: float = 2.0,
    ) -> None:
        super().__init__()
        channels, height, breadth = image
        blocks: list[nn.Module] = []
        out = width
        for _ in range(layers):
            stride = 2 if min(height, breadth) > 4 else 1
            blocks += [
                # No bias: the normalisation that follows would take it out again.
                nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            height, breadth = -(-height // stride), -(-breadth // stride)
            channels, out = out, round(out * growth) if min(height, breadth) > 4 else out
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(channels * height * breadth, classes)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, `n x classes`, of images, `n x channels x height x width`.

        `keep`, `n x head.in_features`, is dropout's mask with its scale; None where nothing drops.
        """
        features = self.features(x).flatten(1)
        logits: torch.Tensor = self.head(features if keep is None else features * keep)
        return logits


def initial_ranges(network: CNN) -> list[tuple[tuple[int, int], float]]:
    """Which of its flattened parameters are drawn at its start, and how far from 0, in that order.

    PyTorch's way: uniform within 1 / √fan_in, a layer's weights and then its bias (He et al., 2015,
    "Delving Deep into Rectifiers", with its a = √5). The others start the same in every network.
    """
    found, begin = [], 0
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            end = begin + parameter.numel()
            if isinstance(module, nn.Conv2d | nn.Linear):
                found.append(((begin, end), module.weight[0].numel() ** -0.5))
            begin = end
    return found
