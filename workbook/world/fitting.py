"""What the trainings of the embedded encoders and teachers share: batches, start values, the loop, what is written.

All are vision transformers with patches of one cell (24 px of 96 px), so 4 x 4 patches: one for each visual token.
They start from patch filters that are the principal components of patches: from random filters one large linear patch
projection needs many times more steps before it tells sprites apart.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from viral_core.teachers import Teacher, load_teacher

from .pool import Pool, load_pool
from .probe import probe
from .scenes import GRID

HELD_OUT = 500  # scenes at the end of the pool that no training sees, for the probes (at most a fifth of the pool)
PROBED = 2000  # scenes at its start that the probes are fitted to
SIZES = dict(width=96, layers=4, heads=4, mlp=192)  # of every vision transformer here


def split_pool(folder: str | Path) -> tuple[Pool, Pool]:
    """The scenes to train on, and those kept for the probes."""
    pool = load_pool(folder)
    kept = min(HELD_OUT, len(pool) // 5)
    return pool[: len(pool) - kept], pool[len(pool) - kept :]


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w), pixels in 0..1 minus mean, over deviation."""
    mean, std = torch.tensor(mean, dtype=torch.float32) * 255, torch.tensor(std, dtype=torch.float32) * 255
    return ((torch.from_numpy(np.array(images)) - mean) / std).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def start_patches(weight: Tensor, pixels: Tensor, scale: float = 0.3, floor: float = 0.05) -> None:
    """Set patch filters to the leading principal components of patches, whitened: in place.

    weight: (width, ...) with 3 * patch ** 2 values a filter, channels first.  pixels: normalised (n, 3, h, w).
    `scale` is the deviation of an output, `floor` keeps weak components, mostly noise, below that.
    """
    width, patch = weight.shape[0], round((weight[0].numel() / 3) ** 0.5)
    patches = nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    _, values, vectors = torch.svd_lowrank(patches, q=min(width, *patches.shape), niter=4)
    deviation = values / len(patches) ** 0.5
    filters = scale * (vectors / (deviation + floor * deviation[0])).T
    weight[: len(filters)] = filters.reshape(-1, *weight.shape[1:])


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[np.ndarray], Tensor],
    n: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    name: str,
    after: Callable[[int], None] = lambda step: None,
) -> dict:
    """AdamW with warm-up and a cosine, on random batches of rows out of n; `after(step)` runs behind each step.

    Returns what `write` puts into metrics.json: the steps, the seconds and the loss, averaged over tenths of the run.
    """
    rng, warm_up = np.random.default_rng(seed), max(1, steps // 12)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    losses, start = [], time.perf_counter()
    with tqdm(range(steps), f"training {name}", unit="step", mininterval=1) as bar:
        for step in bar:
            value = loss(np.sort(rng.choice(n, min(batch, n), replace=False)))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            after(step)
            losses.append(value.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    if not math.isfinite(losses[-1]):
        raise ValueError(f"training {name} diverged (loss {losses[-1]}): lower its lr")
    tenths = [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(10, steps))]
    return {"steps": steps, "batch": batch, "seconds": round(time.perf_counter() - start, 1), "loss": tenths}


def features_of(teacher: Teacher, pool: Pool, batch: int = 200) -> Tensor:
    """Features (n, 16, d) of all scenes of a pool."""
    starts = range(0, len(pool), batch)
    return torch.cat([teacher([Image.fromarray(image) for image in pool.images[i : i + batch]]) for i in starts])


def write(out: str | Path, kind: str, pools: tuple[Pool, Pool], record: dict, *parts) -> dict:
    """Save model and processors (`parts`), load them again as the teacher that everybody else will load, and probe it.

    Writes metrics.json beside the weights: the record of the training and the probes' accuracies on held-out scenes.
    """
    out = Path(out)
    for part in parts:
        part.save_pretrained(out)
    teacher = load_teacher(kind, out, GRID, size=pools[0].images.shape[1])
    pools = (pools[0][:PROBED], pools[1])
    metrics = {
        "kind": kind,
        "note": "stand-in: a tiny model trained from scratch on the embedded world",
        "parameters": sum(p.numel() for p in teacher.model.parameters()),
        **record,
        "probe": probe(*((features_of(teacher, pool), pool) for pool in pools)),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics
