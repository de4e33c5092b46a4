"""The model of `kernels`, `fit` and `posterior` in GPyTorch's and BoTorch's own terms.

What a proposal computes is held against this.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tuner.searchers.kernels import Array

with warnings.catch_warnings():  # linear_operator compiles a few functions the deprecated way
    warnings.simplefilter("ignore", FutureWarning)
    from botorch.models import SingleTaskGP
    from botorch.models.kernels import CategoricalKernel
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import Kernel, MaternKernel, ProductKernel, RBFKernel, ScaleKernel
    from gpytorch.priors import LogNormalPrior


def define(x: Tensor, y: Tensor, choices: Sequence[int]) -> SingleTaskGP:
    """The model of `n x (d + 1)` points and n scores, not fitted; BoTorch standardises inside."""
    kernel = define_kernel(x.shape[-1] - 1, choices)
    return SingleTaskGP(x, y.unsqueeze(-1), covar_module=kernel)


def define_kernel(d: int, choices: Sequence[int]) -> Kernel:
    """What `kernels.Kernel` says."""
    ordered = tuple(i for i in range(d) if i not in choices)
    parts: list[Kernel] = [_epochs_kernel(d)]
    if ordered:
        prior = LogNormalPrior(math.sqrt(2) + math.log(d) / 2, math.sqrt(3))
        parts.append(
            MaternKernel(
                ard_num_dims=len(ordered),
                active_dims=ordered,
                lengthscale_prior=prior,
                lengthscale_constraint=GreaterThan(2.5e-2, initial_value=prior.mode.item()),
            )
        )
    if choices:
        parts.append(
            CategoricalKernel(
                ard_num_dims=len(choices),
                active_dims=tuple(choices),
                lengthscale_constraint=GreaterThan(1e-6),
            )
        )
    kernel: Kernel = ScaleKernel(
        ProductKernel(*parts),
        outputscale_prior=LogNormalPrior(0.0, 1.0),
        outputscale_constraint=GreaterThan(1e-4, initial_value=1.0),
    )
    if ordered:
        slopes = _Slopes(
            ard_num_dims=len(ordered),
            active_dims=ordered,
            lengthscale_prior=LogNormalPrior(math.sqrt(2), 1.0),
            lengthscale_constraint=GreaterThan(5e-2, initial_value=2.0),
        )
        kernel = kernel + ScaleKernel(
            slopes * _epochs_kernel(d),
            outputscale_prior=LogNormalPrior(-1.0, 1.0),
            outputscale_constraint=GreaterThan(1e-4, initial_value=math.exp(-1.0)),
        )
    return kernel


class _Slopes(Kernel):  # type: ignore[misc]  # GPyTorch says nothing of its types
    """Linear functions through the middle of the space: k(x, z) = sum_j 4 x_j z_j / l_j^2.

    GPyTorch's LinearKernel is the same with other parameters, and cannot be pickled.
    """

    has_lengthscale = True

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """`n x m` for `n x d` and `m x d`, or the n of the diagonal."""
        a, b = 2 * x1 / self.lengthscale, 2 * x2 / self.lengthscale
        covariance: Tensor = (a * b).sum(-1) if diag else a @ b.transpose(-1, -2)
        return covariance


def _epochs_kernel(d: int) -> Kernel:
    return RBFKernel(
        active_dims=(d,),
        lengthscale_prior=LogNormalPrior(0.0, 1.0),
        lengthscale_constraint=GreaterThan(5e-2, initial_value=1.0),
    )


def hyperparameters(model: SingleTaskGP) -> list[tuple[Any, str]]:
    """Where the model keeps its hyperparameters, module and name, in the order of `theta`."""
    kernel = model.covar_module
    alike, *slopes = [kernel] if isinstance(kernel, ScaleKernel) else kernel.kernels
    found = [(model.likelihood.noise_covar, "noise"), (alike, "outputscale")]
    found += [(part, "lengthscale") for part in alike.base_kernel.kernels]
    for scaled in slopes:
        lines, epochs = scaled.base_kernel.kernels
        found += [(scaled, "outputscale"), (epochs, "lengthscale"), (lines, "lengthscale")]
    return found


def set_hyperparameters(model: SingleTaskGP, theta: Array, mean: float) -> None:
    """Give the model p hyperparameters, logarithms, and its mean, as `fit` finds them."""
    values, at = torch.exp(torch.from_numpy(theta)), 0
    for module, name in hyperparameters(model):
        old = getattr(module, name)
        module.initialize(**{name: values[at : at + old.numel()].reshape(old.shape)})
        at += old.numel()
    model.mean_module.initialize(constant=mean)
