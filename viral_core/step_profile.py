"""Where the time of a training step goes."""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from statistics import median

import torch

from viral_core.aligned import AlignedModel
from viral_core.data import Collator, ConversationDataset
from viral_core.recipe import Recipe
from viral_core.tap import base_llava

PARTS = ("data", "vision", "projector", "language model", "alignment", "backward", "optimiser")


class _Stopwatch:
    """Seconds by part; on a GPU every part is waited for, so that the sum is larger than a step that runs freely."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._starts: list[float] = []

    def start(self, *_) -> None:
        self._starts.append(self._now())

    def stop(self, part: str) -> None:
        self.seconds[part] += self._now() - self._starts.pop()

    @contextmanager
    def measure(self, part: str):
        self.start()
        yield
        self.stop(part)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def profile_step(
    aligned: AlignedModel,
    dataset: ConversationDataset,
    collator: Collator,
    recipe: Recipe,
    batches: Sequence[Sequence[int]],
) -> dict[str, float]:
    """Median seconds of each part of a step (`PARTS`), over batches of indices into the dataset; the first warms up.

    "language model" has its loss in it; "alignment" is the rest of the forward pass: taps, heads, L_VRA. Weights stay
    as they are (a learning rate of 0), cached sources belong to "data".
    """
    core, watch = base_llava(aligned.llava).model, _Stopwatch()
    device = next(core.parameters()).device
    handles = []
    for part, module in (("vision", core.vision_tower), ("projector", core.multi_modal_projector)):
        handles.append(module.register_forward_pre_hook(watch.start))
        handles.append(module.register_forward_hook(lambda *_, part=part: watch.stop(part)))
    handles.append(aligned.llava.register_forward_pre_hook(watch.start))
    handles.append(aligned.llava.register_forward_hook(lambda *_: watch.stop("llava")))
    optimizer = torch.optim.AdamW([p for p in aligned.parameters() if p.requires_grad], lr=0.0)
    aligned.train()
    steps = []
    try:
        for indices in batches:
            watch.seconds = defaultdict(float)
            with watch.measure("data"):
                batch = collator([dataset[i] for i in indices])
                batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            with watch.measure("forward"), torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                loss = aligned(**batch)["loss"]
            with watch.measure("backward"):
                loss.backward()
            with watch.measure("optimiser"):
                optimizer.step()
                optimizer.zero_grad()
            steps.append(_parts(watch.seconds))
    finally:
        for handle in handles:
            handle.remove()
    return {part: median(step[part] for step in steps[1:]) for part in PARTS}


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    """Nested times to times that add up to the step."""
    inner = seconds["vision"] + seconds["projector"]
    parts = {**seconds, "language model": seconds["llava"] - inner, "alignment": seconds["forward"] - seconds["llava"]}
    return {part: parts.get(part, 0.0) for part in PARTS}
