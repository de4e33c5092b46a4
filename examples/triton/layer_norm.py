"""How long a fused kernel takes with some block sizes: a row-wise layer norm in Triton on a GPU.

`layer_norm.py --block 1024 --warps 4 --stages 2` compiles it, checks it against PyTorch's own, and
prints the median of many launches. Exit code 3: these do not fit the GPU. Needs an NVIDIA GPU and
Triton, which PyTorch's CUDA builds bring along.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

REFUSED = 3
ROWS, COLUMNS = 8192, 4096


def main() -> int:
    """Compile, check, measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("block", "warps", "stages"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA GPU here")
        return 1
    import triton
    import triton.language as tl

    @triton.jit
    def layer_norm(x, y, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        total = tl.zeros([BLOCK], tl.float32)
        squares = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
            total += value
            squares += value * value
        mean = tl.sum(total, 0) / columns
        scale = tl.rsqrt(tl.sum(squares, 0) / columns - mean * mean + 1e-5)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
            tl.store(y + row * columns + at, (value - mean) * scale, mask=at < columns)

    x = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)

    def launch() -> None:
        layer_norm[(ROWS,)](
            x, y, COLUMNS, BLOCK=asked.block, num_warps=asked.warps, num_stages=asked.stages
        )

    try:
        launch()
        torch.cuda.synchronize()
    except triton.runtime.errors.OutOfResources as error:
        print(f"these do not fit: {error}")
        return REFUSED
    expected = torch.nn.functional.layer_norm(x.float(), (COLUMNS,))
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    print(f"time {_median_ms(launch):.6f} ms")
    return 0


def _median_ms(launch) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(50):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        launch()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times[10:])


if __name__ == "__main__":
    sys.exit(main())
