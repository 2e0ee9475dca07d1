"""Time `cknna` against a direct transcription of its published formula, in float64.

    python -m workbook.scale.benchmark_cknna --out cknna_benchmark.csv

The transcription forms the matrix product inside the HSIC, which is O(n^3).  Writes one row per n, with the machine and
the versions; fails where the two values differ by more than 1e-9.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from viral_core import environment
from viral_core.measure.cknna import EPSILON, cknna

TOLERANCE = 1e-9


def transcription(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    """CKNNA of (n, d) float64 features as the formula stands, matrix products and all."""

    def masked(features):
        kernel = features @ features.T
        others = kernel - torch.diag(torch.full((len(kernel),), torch.inf, dtype=kernel.dtype, device=kernel.device))
        return kernel, torch.zeros_like(kernel).scatter(1, others.topk(k, dim=1).indices, 1.0)

    def hsic(p, q):
        n = len(p)
        total = (p * q.T).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * (p @ q).sum() / (n - 2)
        return total / (n * (n - 3))

    (kernel_x, mask_x), (kernel_y, mask_y) = (masked(f / f.norm(dim=1, keepdim=True)) for f in (x, y))
    both = mask_x * mask_y
    self_x = hsic(mask_x * kernel_x, mask_x * kernel_x)
    self_y = hsic(mask_y * kernel_y, mask_y * kernel_y)
    return float(hsic(both * kernel_x, both * kernel_y) / (torch.sqrt(self_x * self_y) + EPSILON))


def benchmark(
    sizes=(576, 1000, 4000), d: int = 256, k: int = 10, repeats: int = 3, device: str = "cpu"
) -> pd.DataFrame:
    """Best time of `repeats` calls per n, after a call to warm up, on two related random representations.

    Returns:
        One row per n: n, d, k, cknna_seconds, transcription_seconds, speedup, value, difference, and the machine.

    Raises:
        ValueError: the values differ by more than 1e-9.
    """
    machine = environment.describe()
    gpu = device.startswith("cuda")
    processor = machine["gpus"][0]["model"] if gpu else machine["cpu"]["model"]
    rows = []
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        y = (x + torch.randn(n, d, generator=generator, dtype=torch.float64)).to(device)
        x = x.to(device)
        (fast, fast_seconds), (slow, slow_seconds) = (_best(kind, x, y, k, repeats) for kind in (cknna, transcription))
        if abs(fast - slow) > TOLERANCE:
            raise ValueError(f"n = {n}: cknna gives {fast}, the transcription {slow}")
        row = {"n": n, "d": d, "k": k, "cknna_seconds": fast_seconds, "transcription_seconds": slow_seconds}
        row |= {"speedup": slow_seconds / fast_seconds, "value": fast, "difference": abs(fast - slow)}
        rows.append({**row, "device": device, "processor": processor, "torch": torch.__version__})
    return pd.DataFrame(rows)


def _best(measure, x: torch.Tensor, y: torch.Tensor, k: int, repeats: int) -> tuple[float, float]:
    """A call's value and its shortest time in seconds; the value is a float, so the device has finished."""
    value, seconds = float(measure(x, y, k)), []
    for _ in range(repeats):
        start = time.perf_counter()
        float(measure(x, y, k))
        seconds.append(time.perf_counter() - start)
    return value, min(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cknna_benchmark.csv"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[576, 1000, 4000])
    arguments = parser.parse_args()
    table = benchmark(arguments.sizes, device=arguments.device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.to_string(index=False))
