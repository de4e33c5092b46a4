"""The network of `models.cnn` k times at once: weights stacked, one kernel for all.

Activations are `k x channels x n x height x width`. A convolution copies its patches into a matrix
and multiplies k of those with k weight matrices, or is a grouped one; channels first, a batch
normalisation of k networks is one of k times the channels. Weights are rows of one matrix, so that
an optimiser's step is a handful of operations however many layers there are.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.cnn import CNN, initial_ranges
from models.normalise import normalised
from models.patches import patches


class StackedCNN:
    """What k networks of one shape compute, as functions of their weights; holds none itself.

    Args:
        network: any one of that shape.
        grouped: whether convolutions are PyTorch's with k groups, and not matrix products.
    """

    def __init__(self, network: CNN, grouped: bool = False) -> None:
        self._convolve = _convolve_grouped if grouped else _convolve
        self._parameters = [(name, p.shape) for name, p in network.named_parameters()]
        self._sizes = [p.numel() for p in network.parameters()]
        norms = [m for m in network.features if isinstance(m, nn.BatchNorm2d)]
        self._buffers = [n for n, _ in network.named_buffers() if not n.endswith("tracked")]
        self._counters = [n for n, _ in network.named_buffers() if n.endswith("tracked")]
        self._channels = [norm.num_features for norm in norms for _ in ("mean", "variance")]
        self._strides = [m.stride[0] for m in network.features if isinstance(m, nn.Conv2d)]
        self._eps = norms[0].eps
        self.pace = norms[0].momentum or 0.0
        """How far running statistics move towards a batch's."""
        self.features = network.head.in_features
        self.n_weights = sum(self._sizes)
        self.n_statistics = sum(self._channels)
        self._blank = self.read(network)
        self._draws = initial_ranges(network)

    # -- a network as a row ------------------------------------------------------------------------

    def start(self, seed: int) -> tuple[Tensor, Tensor]:
        """What `read` would give of a network that was made after `torch.manual_seed(seed)`."""
        generator = torch.Generator().manual_seed(seed)
        weights, statistics = (part.clone() for part in self._blank)
        drawn = torch.empty(weights.shape)  # in single precision, as PyTorch makes networks
        for (begin, end), bound in self._draws:
            weights[begin:end] = drawn[begin:end].uniform_(-bound, bound, generator=generator)
        return weights, statistics

    def read(self, network: CNN) -> tuple[Tensor, Tensor]:
        """A network's weights, `n_weights`, and running statistics, `n_statistics`."""
        state = network.state_dict()
        weights = [state[name].flatten() for name, _ in self._parameters]
        return torch.cat(weights), torch.cat([state[name] for name in self._buffers])

    def pack(
        self,
        weights: NDArray[Any],
        momentum: NDArray[Any],
        statistics: NDArray[Any],
        steps: int,
    ) -> dict[str, NDArray[Any]]:
        """Rows, as views, under the names that a `Trainer` gives the same; `steps` it has taken."""
        arrays: dict[str, NDArray[Any]] = {}
        edges = [0, *itertools.accumulate(self._sizes)]
        for i, (name, shape) in enumerate(self._parameters):
            part = slice(edges[i], edges[i + 1])
            arrays[f"network.{name}"] = weights[part].reshape(shape)
            arrays[f"momentum.{i}"] = momentum[part].reshape(shape)
        edges = [0, *itertools.accumulate(self._channels)]
        for name, (start, stop) in zip(self._buffers, itertools.pairwise(edges), strict=True):
            arrays[f"network.{name}"] = statistics[start:stop]
        for name in self._counters:
            arrays[f"network.{name}"] = np.array(steps, dtype=np.int64)
        return arrays

    def unpack(self, arrays: dict[str, NDArray[Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of what `pack` or `Trainer.state` gave: weights, momentum, statistics.

        Raises KeyError or RuntimeError where the arrays are of another network. A training that
        has no momentum yet, or never has any, begins with zeros.
        """
        weights = [_read(arrays, f"network.{name}", shape) for name, shape in self._parameters]
        momentum = [
            _read(arrays, f"momentum.{i}", shape) if f"momentum.{i}" in arrays else np.zeros(shape)
            for i, (_, shape) in enumerate(self._parameters)
        ]
        statistics = [
            _read(arrays, f"network.{name}", (size,))
            for name, size in zip(self._buffers, self._channels, strict=True)
        ]
        flat = [
            np.concatenate([part.ravel() for part in parts], dtype=weights[0].dtype)
            for parts in (weights, momentum, statistics)
        ]
        return torch.from_numpy(flat[0]), torch.from_numpy(flat[1]), torch.from_numpy(flat[2])

    # -- k networks --------------------------------------------------------------------------------

    def train(self, weights: Tensor, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits, `k x n x classes`, and the batch's statistics, `k x n_statistics`.

        `weights` is `k x n_weights`, `images` `k * n x channels x height x width`, the first n of
        them the first network's; `keep`, `k x n x features`, is dropout's mask with its scale.
        """
        k = len(weights)
        x = images.unflatten(0, (k, -1)).transpose(1, 2)
        seen: list[Tensor] = []

        def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            channels = x.reshape(-1, x[0, 0].numel())
            out, statistics = normalised(channels, scale.flatten(), shift.flatten(), self._eps)
            seen.extend(statistics.view(2, k, -1))
            return out.view(x.shape)

        logits = self._forward(weights, x, normalise, keep)
        return logits, torch.cat(seen, 1).to(weights.dtype)

    def evaluate(self, weights: Tensor, statistics: Tensor, images: Tensor) -> Tensor:
        """Logits, `k x n x classes`, of the same `n x channels x height x width` for all."""
        running = iter(statistics.split(self._channels, 1))

        def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            mean, variance = next(running), next(running)
            factor = scale * torch.rsqrt(variance + self._eps)
            shape = (*factor.shape, 1, 1, 1)
            level = (shift - mean * factor).view(shape)
            return torch.addcmul(level, x, factor.view(shape)).relu_()

        return self._forward(weights, images.transpose(0, 1)[None], normalise, None)

    def _forward(self, weights: Tensor, x: Tensor, normalise: Any, keep: Tensor | None) -> Tensor:
        k = len(weights)
        # One split, whose gradient is one concatenation.
        parts = iter(
            part.reshape(k, *shape)
            for part, (_, shape) in zip(
                weights.split(self._sizes, 1), self._parameters, strict=True
            )
        )
        for stride in self._strides:
            x = self._convolve(x, next(parts), stride)
            x = normalise(x, next(parts), next(parts))
        features = x.transpose(1, 2).flatten(2)  # k x n x features
        if keep is not None:
            features = features * keep
        head, bias = next(parts), next(parts)
        return torch.baddbmm(bias[:, None], features, head.transpose(1, 2))


def _convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """3 × 3 with padding 1: `k x c x n x h x w` with `k x o x c x 3 x 3` to `k x o x n x h' x w'`.

    Images that all networks share may come as `1 x c x n x h x w`.
    """
    k, out = weight.shape[:2]
    n, height, width = x.shape[2], -(-x.shape[3] // stride), -(-x.shape[4] // stride)
    columns, matrix = patches(x, stride), weight.flatten(2)
    matrix = F.pad(matrix, (0, columns.shape[1] - matrix.shape[2]))
    if len(x) == k:
        product = torch.bmm(matrix, columns)
    else:
        product = torch.mm(matrix.flatten(0, 1), columns[0])
    return product.view(k, out, n, height, width)


def _convolve_grouped(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The same by a grouped convolution, with the networks side by side among the channels."""
    k, out = weight.shape[:2]
    beside = x.expand(k, *x.shape[1:]).movedim(2, 0).flatten(1, 2)  # n x (k * c) x h x w
    y = F.conv2d(beside, weight.flatten(0, 1), stride=stride, padding=1, groups=k)
    apart: Tensor = y.unflatten(1, (k, out)).movedim(0, 2)
    return apart


def _read(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    array = arrays[name]
    if array.shape != tuple(shape):
        raise RuntimeError(f"{name} is {array.shape}, expected {tuple(shape)}")
    return array
