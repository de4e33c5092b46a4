"""The kernels that a GPU gathers patches with, run by Triton's interpreter where there is none."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from models import patches

SHAPES = [
    *[(3, 1, 5, 28, 28, 2), (2, 4, 5, 14, 14, 2), (2, 3, 5, 7, 7, 2), (2, 4, 5, 4, 4, 1)],
    *[(2, 8, 3, 9, 12, 2), (1, 1, 1, 1, 1, 1), (2, 2, 3, 10, 12, 3)],
]
"""Networks, channels, images, height, width; stride."""


def check_kernels(device):
    """Patches, and the slope that goes back through them, are those of PyTorch's own operations."""
    generator = torch.Generator().manual_seed(0)
    for *shape, stride in SHAPES:
        for dtype, error in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
            x = torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()
            expected = patches.unfolded(x, stride)
            k, rows, columns = expected.shape
            found = patches.gathered(x, stride)
            assert found.shape == (k, -(-rows // 8) * 8, columns)
            assert torch.equal(found[:, :rows], expected)
            assert not found[:, rows:].any()
            slope = torch.randn(expected.shape, generator=generator).to(device, dtype)
            full = F.pad(slope, (0, 0, 0, found.shape[1] - rows), value=torch.nan)
            (back,) = torch.autograd.grad(found, x, full)
            (exact,) = torch.autograd.grad(expected.float(), x, slope.float())
            scale = exact.abs().max()
            assert (back.float() - exact.float()).abs().max() <= error * max(1.0, scale)


@pytest.mark.skipif(find_spec("triton") is None, reason="PyTorch came without Triton here")
def test_the_kernels_do_what_pytorchs_operations_do():
    # In a process of its own: Triton reads the variable where a kernel is defined.
    command = "from tests.models.test_patches import check_kernels; check_kernels('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", command], env=environment, check=True, timeout=300)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_the_kernels_do_it_on_a_gpu():
    check_kernels("cuda:0")


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_times_patches_are_a_convolution(shape):
    *shape, stride = shape
    k, c = shape[:2]
    x, weight = (torch.randn(*s, dtype=torch.float64) for s in (shape, (k, 5, c, 3, 3)))
    product = torch.bmm(weight.flatten(2), patches.patches(x, stride))
    for i in range(k):
        expected = F.conv2d(x[i].transpose(0, 1), weight[i], stride=stride, padding=1)
        assert torch.allclose(
            product[i].view_as(expected.transpose(0, 1)), expected.transpose(0, 1)
        )
