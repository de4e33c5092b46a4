"""The kernels of a pack, run by Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from models import noise, normalise, patches

SHAPES = [
    *[(3, 1, 2, 28, 28, 2), (2, 4, 2, 14, 14, 2), (2, 3, 5, 7, 7, 2), (2, 4, 5, 4, 4, 1)],
    *[(2, 8, 3, 9, 12, 2), (1, 1, 1, 1, 1, 1), (2, 2, 3, 10, 12, 3)],
]
"""Networks, channels, images, height, width; stride."""


def check_patches(device):
    """Patches, and the slope that goes back through them, are those of PyTorch's own operations."""
    generator = torch.Generator().manual_seed(0)
    for *shape, stride in SHAPES:
        for dtype, error in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
            x = torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()
            expected = patches.unfolded(x, stride)
            k, rows, columns = expected.shape
            found = patches.gathered(x, stride)
            aligned = 8 if dtype is torch.bfloat16 else 1
            assert found.shape == (k, -(-rows // aligned) * aligned, columns)
            assert torch.equal(found[:, :rows], expected)
            assert not found[:, rows:].any()
            slope = torch.randn(expected.shape, generator=generator).to(device, dtype)
            full = F.pad(slope, (0, 0, 0, found.shape[1] - rows), value=torch.nan)
            (back,) = torch.autograd.grad(found, x, full)
            (exact,) = torch.autograd.grad(expected.float(), x, slope.float())
            scale = exact.abs().max()
            assert (back.float() - exact.float()).abs().max() <= error * max(1.0, scale)


def check_normalisation(device):
    """What comes out, what is seen, and all slopes, beside PyTorch's own operations in float64."""
    generator = torch.Generator().manual_seed(1)
    for channels, count in ((3, 50), (2, 5000), (4, 1)):
        for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
            draw = [torch.randn(*s, generator=generator) for s in ((channels, count), (channels,))]
            x, scale = 3 + 2 * draw[0], draw[1]
            shift, slope = torch.linspace(-0.3, 0.5, channels), torch.randn(draw[0].shape)
            found, expected = [], []
            for kept, kind, many in (
                (found, dtype, normalise.fused),
                (expected, torch.float64, normalise.separate),
            ):
                # Both see what the lower precision makes of the numbers.
                part = [
                    x.to(dtype).to(kind),
                    *(t.to(torch.promote_types(kind, torch.float32)) for t in (scale, shift)),
                ]
                part = [t.to(device).requires_grad_() for t in part]
                out, seen = many(*part, 1e-5)
                slopes = torch.autograd.grad(out, part, slope.to(dtype).to(device, kind))
                kept += [t.double().cpu() for t in (out, seen, *slopes)]
            for mine, theirs in zip(found, expected, strict=True):
                scale_of = max(1.0, theirs.abs().max().item())
                assert (mine - theirs).abs().max() <= error * scale_of


def check_dropout(device):
    """The same bits, so the same masks, to the last."""
    keys = torch.tensor([5, -(2**31), 2**31 - 1, -7], dtype=torch.int32, device=device)
    batches = torch.tensor([0, 3, 100_000, 2**20], device=device)
    least = torch.tensor([-32768, -20_000, 0, 32767], dtype=torch.int32, device=device)
    factor = torch.tensor([1.0, 1.25, 2.0, 65536.0], device=device)
    for count in (1, 1024, 3001):
        expected = noise.keep_separate(keys, batches, least, factor, count)
        assert torch.equal(noise.keep_fused(keys, batches, least, factor, count), expected)
    assert expected[0].all()
    assert 0.4 < (expected[2] > 0).float().mean() < 0.6


def check_kernels(device):
    check_patches(device)
    check_dropout(device)
    check_normalisation(device)


@pytest.mark.skipif(find_spec("triton") is None, reason="PyTorch came without Triton here")
def test_the_kernels_do_what_pytorchs_operations_do():
    # In a process of its own: Triton reads the variable where a kernel is defined.
    command = "from tests.models.test_kernels import check_kernels; check_kernels('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", command], env=environment, check=True, timeout=300)


@pytest.mark.skipif(find_spec("triton") is None, reason="PyTorch came without Triton here")
def test_the_kernels_compile_for_a_gpu_without_one():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    def build(kernel, constants, **types):
        names = [p.name for p in kernel.params]
        kinds = {n: types.get(n, "constexpr" if n in constants else "i32") for n in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=kinds, constexprs=values)
        assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

    block = {"BLOCK": 1024}
    for dtype in ("*fp32", "*bf16"):
        for stride in (1, 2):
            build(patches._gather, {"STRIDE": stride, **block}, x=dtype, out=dtype)
            build(patches._scatter, {"STRIDE": stride, **block}, slope=dtype, out=dtype)
        each = dict.fromkeys(("scale", "shift", "mean", "inverse", "by_scale", "by_shift"), "*fp32")
        build(normalise._forward, block, x=dtype, out=dtype, eps="fp32", **each)
        build(normalise._backward, block, x=dtype, slope=dtype, out=dtype, **each)
    pointers = {"keys": "*i32", "batches": "*i32", "least": "*i32", "factor": "*fp32"}
    build(noise._keep, block, out="*fp32", **pointers)


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
