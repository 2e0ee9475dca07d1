"""What the trainings of the stand-ins share: a model to begin with, the loop, probes, what is written."""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoImageProcessor, PreTrainedModel

from viral_core.distributed import device
from viral_core.environment import git_state
from viral_core.measure.probes import probes
from viral_core.teachers import Teacher, load_teacher
from workbook.world.render import LABELS, PROBES
from workbook.world.scenes import GRID
from workbook.world.stand_ins import FOLDER
from workbook.world.stand_ins.pictures import Pictures

SAVED_EVERY = 120  # seconds
PROBED = 2000  # training scenes that probes are fitted to


def untrained(model_class: type[PreTrainedModel], name: str) -> PreTrainedModel:
    """A model of a stand-in's architecture, with random weights in single precision."""
    return model_class(model_class.config_class.from_pretrained(FOLDER / name))


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


def start(patches: Tensor, positions: Tensor, train: Pictures, mean: Sequence[float], std: Sequence[float]) -> None:
    """Start values of patch filters, from pictures, and of position embeddings."""
    start_patches(patches, train[:800].pixels(mean, std).cpu())
    nn.init.normal_(positions, std=0.3)


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[np.ndarray, float], Tensor],
    n: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    state: Path,
    muon: float = 0.0,
    after: Callable[[float], None] = lambda progress: None,
) -> dict:
    """Train on random batches of rows out of n: AdamW with warm-up and a cosine; Muon at rate `muon` for matrices.

    `loss(rows, progress)` and `after(progress)`, called behind each step, know the part of the training that is done.
    The `state` file is written every `SAVED_EVERY` seconds; a training that was killed goes on from there.

    Returns what `save` puts into metrics.json: steps, batch, seconds and the loss, averaged over tenths of the run.
    ValueError: the loss is no longer finite.
    """
    rng, warm_up = np.random.default_rng(seed), max(1, min(200, steps // 12))
    matrices = [p for p in parameters if muon and p.ndim == 2 and min(p.shape) > 1 and max(p.shape) < 512]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    optimizers = [torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.01))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    losses, begin, first = [], time.perf_counter(), 0
    if state.is_file():
        saved = torch.load(state)
        losses, first, begin = list(saved["losses"]), saved["step"], begin - saved["seconds"]
        rng.bit_generator.state = saved["rng"]
        with torch.no_grad():
            for parameter, value in zip(parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        for optimizer, value in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
    written = time.perf_counter()
    for step in tqdm(range(first, steps), state.stem, steps, initial=first, unit="step", mininterval=10):
        scale = min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        value = loss(np.sort(rng.integers(n, size=batch)), step / steps)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(value.detach())
        after((step + 1) / steps)
        if time.perf_counter() - written > SAVED_EVERY:
            written = time.perf_counter()
            content = {"step": step + 1, "seconds": written - begin, "losses": torch.stack([x.cpu() for x in losses])}
            content |= {"parameters": list(parameters), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(content | {"rng": rng.bit_generator.state}, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)
    state.unlink(missing_ok=True)
    losses = torch.stack([x.cpu() for x in losses]).float().numpy()
    if not np.isfinite(losses[-1]):
        raise ValueError(f"training {state.stem} diverged (loss {losses[-1]}): lower its lr")
    tenths = [round(float(part.mean()), 4) for part in np.array_split(losses, min(10, steps))]
    return {"steps": steps, "batch": batch, "seconds": round(time.perf_counter() - begin, 1), "loss": tenths}


@torch.no_grad()
def features_of(teacher: Teacher, pictures: Pictures, batch: int = 250) -> Tensor:
    """Features (n, 64, d) of all scenes, on the CPU."""
    starts = range(0, len(pictures), batch)
    images = ([Image.fromarray(image) for image in pictures.images[i : i + batch]] for i in starts)
    return torch.cat([teacher(part).cpu() for part in images])


def accuracies(teacher: Teacher, fitted: Pictures, held_out: Pictures) -> dict[str, float]:
    """Accuracy on held-out scenes of a linear probe of each of `PROBES`, over the tokens that show an object (for
    facing: one with a front); `occupied`: object or not, over all tokens.
    """
    sides = []
    for part in (fitted, held_out):
        labels = {name: part.labels[..., LABELS.index(name)] for name in PROBES}
        sides += [features_of(teacher, part).numpy(), labels | {"occupied": 1 + (labels["category"] > 0)}]
    sums = probes(*sides).groupby("probe")[["right", "tokens"]].sum()
    return (sums["right"] / sums["tokens"]).round(4).to_dict()


def save(out: Path, kind: str, pictures: tuple[Pictures, Pictures], record: dict, model: nn.Module, *parts) -> dict:
    """Save a vision model in half precision and its `parts`, probe what the students will load, write metrics.json."""
    for part in (model.to("cpu", torch.float16), *parts):
        part.save_pretrained(out)
    if kind != "vae":
        AutoImageProcessor.from_pretrained(FOLDER / out.name).save_pretrained(out)
    train, held_out = pictures
    probe = accuracies(load_teacher(kind, out, GRID, device=device()), train[:PROBED], held_out)
    return write_metrics(out, model, {**record, "pictures": len(train), "probe": probe})


def write_metrics(out: Path, model: nn.Module, record: dict) -> dict:
    """Write metrics.json: the record of a training, and where and with what the stand-in was made."""
    metrics = {
        "note": "stand-in: a tiny model trained from scratch on the embedded world",
        "parameters": sum(p.numel() for p in model.parameters()),
        **record,
        "made_by": "python -m workbook.world.stand_ins",
        "commit": git_state(FOLDER)["commit"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "torch": torch.__version__,
        "licence": "weights: as the repository's code; trained on drawings after OpenMoji (CC BY-SA 4.0) and the "
        "photographs that workbook.world.render credits",
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics
