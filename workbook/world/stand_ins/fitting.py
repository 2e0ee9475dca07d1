"""What the trainings of the stand-ins share: the loop, probes, what is written."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from viral_core.teachers import Teacher, load_teacher
from workbook.world.render import LABELS
from workbook.world.scenes import GRID
from workbook.world.stand_ins.pictures import Pictures

SAVED_EVERY = 120  # seconds
PROBED = 2000  # training scenes that probes are fitted to
PROBES = ("category", "number", "facing", "position", "extent")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def start_patches(weight: Tensor, pixels: Tensor, scale: float = 0.3, floor: float = 0.05) -> None:
    """Set patch filters to the leading principal components of patches, whitened: in place.

    From random filters one large linear patch projection needs many more steps before it tells sprites apart.

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
    loss: Callable[[np.ndarray, float], Tensor],
    n: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    name: str,
    minutes: float = math.inf,
    state: Path | None = None,
    muon: float = 0.0,
    after: Callable[[float], None] = lambda progress: None,
) -> dict:
    """Train on random batches of rows out of n: AdamW with warm-up and a cosine; Muon at rate `muon` for matrices.

    `loss(rows, progress)` and `after(progress)`, called behind each step, know the part of the training that is done.
    It ends after `steps`, or after `minutes` if these are over first; the rates follow what is nearer to its end.
    A `state` file is written every `SAVED_EVERY` seconds; a training that was killed goes on from there.

    Returns what `save` puts into metrics.json: steps, batch, seconds and the loss, averaged over tenths of the run.
    """
    rng, warm_up = np.random.default_rng(seed), max(1, min(200, steps // 12))
    matrices = [p for p in parameters if muon and p.ndim == 2 and min(p.shape) > 1 and max(p.shape) < 512]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    optimizers = [torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.01))
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    losses, start, step, progress = [], time.perf_counter(), 0, 0.0
    if state and state.is_file():
        saved = torch.load(state)
        losses, step, start = list(saved["losses"]), saved["step"], start - saved["seconds"]
        rng.bit_generator.state, progress = saved["rng"], step / steps
        with torch.no_grad():
            for parameter, value in zip(parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        for optimizer, value in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
    written = time.perf_counter()
    with tqdm(total=steps, initial=step, desc=name, unit="step", mininterval=10) as bar:
        while progress < 1:
            scale = min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * progress))
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * scale
            value = loss(np.sort(rng.integers(n, size=batch)), progress)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(value.detach())
            step += 1
            progress = max(step / steps, (time.perf_counter() - start) / 60 / minutes)
            after(progress)
            bar.update()
            if state and time.perf_counter() - written > SAVED_EVERY:
                written = time.perf_counter()
                content = {"step": step, "seconds": written - start, "losses": torch.stack([x.cpu() for x in losses])}
                content |= {"parameters": list(parameters), "optimizers": [o.state_dict() for o in optimizers]}
                torch.save(content | {"rng": rng.bit_generator.state}, state.with_suffix(".part"))
                state.with_suffix(".part").replace(state)
    if state:
        state.unlink(missing_ok=True)
    losses = torch.stack([x.cpu() for x in losses]).float().numpy()
    if not np.isfinite(losses[-1]):
        raise ValueError(f"training {name} diverged (loss {losses[-1]}): lower its lr")
    tenths = [round(float(part.mean()), 4) for part in np.array_split(losses, min(10, step))]
    return {"steps": step, "batch": batch, "seconds": round(time.perf_counter() - start, 1), "loss": tenths}


@torch.no_grad()
def features_of(teacher: Teacher, pictures: Pictures, batch: int = 250) -> Tensor:
    """Features (n, 64, d) of all scenes, on the CPU."""
    starts = range(0, len(pictures), batch)
    images = ([Image.fromarray(image) for image in pictures.images[i : i + batch]] for i in starts)
    return torch.cat([teacher(part).cpu() for part in images])


def linear_probe(x: Tensor, y: Tensor, test: Tensor, weight_decay: float = 1e-4) -> Tensor:
    """Multinomial logistic regression on features x (n, d) with labels y (n,); the classes of `test` (m, d)."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test = (x - mean) / std, (test - mean) / std
    model = nn.Linear(x.shape[1], int(y.max()) + 1, device=x.device)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + weight_decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return model(test).argmax(1)


def probe(fitted: tuple[Tensor, np.ndarray], held_out: tuple[Tensor, np.ndarray]) -> dict[str, float]:
    """Accuracy on held-out scenes of a linear probe of each of `PROBES`; features (n, 64, d), labels (n, 64, 6).

    Over the tokens that show an object (for facing: one with a front).  `occupied`: object or not, over all tokens.
    """
    (x, labels), (x_test, labels_test) = (
        (features.flatten(0, 1).to(device()), torch.from_numpy(np.array(labels, np.int64)).flatten(0, 1).to(device()))
        for features, labels in (fitted, held_out)
    )
    accuracy = {}
    for name in PROBES:
        column = LABELS.index(name)
        known, known_test = labels[:, column] > 0, labels_test[:, column] > 0
        if known.any() and known_test.any():
            answer = linear_probe(x[known], labels[known, column], x_test[known_test])
            accuracy[name] = round(float((answer == labels_test[known_test, column]).float().mean()), 4)
    answer = linear_probe(x[::2], (labels[::2, 0] > 0).long(), x_test)
    accuracy["occupied"] = round(float((answer == (labels_test[:, 0] > 0)).float().mean()), 4)
    return accuracy


def provenance() -> dict:
    """Where and with what a stand-in was made."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "made_by": "python -m workbook.world.stand_ins",
        "commit": commit.stdout.strip() or os.environ.get("COMMIT", "unknown"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "torch": torch.__version__,
        "licence": "weights: as the repository's code; trained on drawings after OpenMoji (CC BY-SA 4.0) and the "
        "photographs that workbook.world.render credits",
    }


def save(out: Path, kind: str, pictures: tuple[Pictures, Pictures], record: dict, *parts) -> dict:
    """Save model and processors (`parts`) in half precision, and probe what the students will load.

    Writes metrics.json beside the weights: the record of the training and the probes' accuracies on held-out scenes.
    """
    for part in parts:
        if isinstance(part, nn.Module):
            part.to("cpu", torch.float16)
        part.save_pretrained(out)
    train, held_out = pictures
    teacher = load_teacher(kind, out, GRID, device=device())
    probed = [(features_of(teacher, part), part.labels) for part in (train[:PROBED], held_out)]
    metrics = {
        "note": "stand-in: a tiny model trained from scratch on the embedded world",
        "parameters": sum(p.numel() for part in parts if isinstance(part, nn.Module) for p in part.parameters()),
        **record,
        "pictures": len(train),
        "probe": probe(*probed),
        **provenance(),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics
