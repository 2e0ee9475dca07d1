"""The explorer: look into one or two finished runs at one image and one question (notebooks/explorer.py).

`look` measures what a run makes of an image: its answer, the states of its visual tokens, where its answer looks, and
how similar the tokens are to the encoder's features.  `figure` draws looks side by side.  `Explorer` joins both with
widgets; models are loaded when they are first asked for, and a look is kept for each run and question.
"""

import hashlib
import html
import io
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from viral_core import distributed
from viral_core.data import pad_to_square
from viral_core.measure.attention import generate_with_attention
from viral_core.measure.cknna import cknna_batch
from viral_core.measure.inputs import batches, square_side
from viral_core.measure.pca import pca_map
from viral_core.measure.permutation import PatchPermutation
from viral_core.measure.states import stream_states
from viral_core.run_folder import Run, load_run
from viral_core.templates import IMAGE_MARKER, prompt, stop_token_id
from workbook import plots
from workbook.benchmarks import BENCHMARKS, load_rows, open_image
from workbook.paths import ROOT, Paths
from workbook.results.reading import settings_of

QUESTIONS = 200  # of a benchmark that are offered


@dataclass(frozen=True)
class Look:
    """What a run makes of an image with N visual tokens and a question.

    states: (L + 1, N, D), layer 0 the model's input.  attention: (L, heads, H, W), from the positions that predict the
    answer to the image, mean over the answer's tokens.  cknna: (L + 1,) similarity to the encoder's features.
    """

    run: str
    answer: str
    states: np.ndarray
    attention: np.ndarray
    cknna: np.ndarray


def available(profile: str) -> list[str]:
    """Finished runs of a profile with their seed, in its order, whose visual tokens are one square grid."""
    settings, found = settings_of(profile), []
    for run, seeds in settings.runs.items():
        for seed in seeds:
            file = Paths(profile).run(run, seed) / "run.json"
            if file.is_file() and json.loads(file.read_text()).get("architecture", "llava") == "llava":
                found.append(f"{run}-s{seed}")
    return found


@torch.inference_mode()
def look(name: str, run: Run, image: Image.Image, question: str, *, k: int = 10, permuted: bool = False) -> Look:
    """Ask a run one question about one image and measure what it does.

    Args:
        name: of the run.
        image: RGB; padded to a square here.
        question: the user's turn, without an image marker.
        k: neighbours of CKNNA; at most one less than the number of visual tokens.
        permuted: with the order of the visual features shuffled, always in the same way for one image.
    """
    model, processor = run.model, run.processor
    asked = prompt(run.template, f"{IMAGE_MARKER}\n{question}")
    layers = range(model.config.text_config.num_hidden_layers + 1)
    sample = hashlib.sha256(image.tobytes()).hexdigest()
    with PatchPermutation(model, 0) if permuted else nullcontext() as shuffle:
        if shuffle:
            shuffle.set_samples([sample])
        ((_, inputs),) = batches(model, processor, [image], [asked], 1, "")
        (answer,) = generate_with_attention(model, inputs, 32, stop_token_id(processor.tokenizer, run.template))
        (seen,) = stream_states(model, processor, [image], [asked], layers, 1, "")
    n = seen.features.shape[0]
    features = seen.features.float()[None]
    values, _ = cknna_batch(seen.states.float(), features, min(k, n - 1))
    grid = (square_side(n),) * 2
    attention = answer.attention.mean(0) if len(answer.tokens) else torch.full(answer.attention.shape[1:], torch.nan)
    said = processor.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
    return Look(
        name, said, seen.states.float().cpu().numpy(), attention.unflatten(-1, grid).numpy(), values.cpu().numpy()
    )


def figure(image: Image.Image, looks: list[Look], layer: int, head: int | None, label: str) -> plt.Figure:
    """The image, and of each look the PCA map of a layer and its attention over the image; the CKNNA of all.

    Args:
        layer: 0 to L; the attention is that of block max(1, layer).  A run without such a layer says so.
        head: None for the mean over heads; likewise.
        label: stands under the figure, such as the profile's.
    """
    picture, rows = pad_to_square(image), max(1, len(looks))
    drawn = plt.figure(figsize=(9.6, 2.6 * rows + 0.6), layout="constrained")
    grid = drawn.add_gridspec(rows, 4, width_ratios=(1, 1, 1, 1.5))
    for row, seen in enumerate(looks):
        axes = [drawn.add_subplot(grid[row, column]) for column in range(3)]
        last = len(seen.cknna) - 1
        block, heads = max(1, layer), seen.attention.shape[1]
        axes[0].imshow(picture)
        axes[0].set_title(seen.run, fontsize="medium")
        axes[1].set_title(f"PCA, layer {layer}", fontsize="medium")
        axes[2].set_title(f"attention {block}, {'mean' if head is None else f'head {head}'}", fontsize="medium")
        if layer > last:
            for axis in axes[1:]:
                _say(axis, f"no layer {layer}:\nthis run ends at {last}")
        else:
            axes[1].imshow(pca_map(seen.states[layer]), extent=(0, *picture.size, 0))
            if head is not None and head >= heads:
                _say(axes[2], f"no head {head}:\nthis run has 0 to {heads - 1}")
            else:
                weights = seen.attention[block - 1].mean(0) if head is None else seen.attention[block - 1, head]
                axes[2].imshow(picture.convert("L"), cmap="gray", alpha=0.6)
                axes[2].imshow(
                    weights, cmap="inferno", alpha=0.65, extent=(0, *picture.size, 0), vmin=0,
                    vmax=np.nanmax(weights) if np.isfinite(weights).any() else 1,
                )  # fmt: skip
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    curves = drawn.add_subplot(grid[:, 3])
    for i, seen in enumerate(looks):
        curves.plot(seen.cknna, color=plots.COLOURS[i], marker=plots.MARKERS[i], label=seen.run)
    curves.axvline(layer, color="grey", linestyle="--", linewidth=1)
    curves.set(xlabel="layer (dashed: chosen)", ylabel="CKNNA to the encoder, this image")
    if looks:
        curves.legend()
    drawn.supxlabel(plots.wrap(label, 110), fontsize="x-small", color="grey")
    return drawn


def _say(axis: plt.Axes, text: str) -> None:
    axis.set_box_aspect(1)
    axis.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color="grey")


def png(drawn: plt.Figure) -> bytes:
    """A figure as a bitmap; closes it."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=100, metadata={"Software": None})
    plt.close(drawn)
    return file.getvalue()


class Explorer:
    """The widgets of the explorer for a profile; `display(Explorer(profile).panel)` shows them.

    Raises:
        FileNotFoundError: no run of the profile has been trained; the message says what to do.
    """

    def __init__(self, profile: str):
        import ipywidgets as widgets

        self.settings, self.names = settings_of(profile), available(profile)
        if not self.names:
            raise FileNotFoundError(
                f"profile {profile} has no trained run yet: `make repro PROFILE={profile}` trains them, "
                "or choose another profile in the parameters cell"
            )
        self._run = lru_cache(2)(self._load_run)  # as many as are chosen: large ones would not fit beside more
        self._rows = lru_cache(None)(self._load_rows)
        self._looks = lru_cache(64)(self._look)
        second = next((name for name in self.names if name.startswith("viral-")), self.names[-1])
        wide, style = widgets.Layout(width="32rem"), {"description_width": "7rem"}
        known = [name for name in self.settings.evaluation.benchmarks if name in BENCHMARKS]
        blocks = self._run(self.names[0]).model.config.text_config.num_hidden_layers
        self.first = widgets.Dropdown(options=self.names, value=self.names[0], description="run", style=style)
        self.second = widgets.Dropdown(options=["none", *self.names], value=second, description="beside", style=style)
        self.benchmark = widgets.Dropdown(options=known, description="benchmark", style=style)
        self.question = widgets.Dropdown(description="question", layout=wide, style=style)
        self.path = widgets.Text(description="own image", placeholder="path, or upload", layout=wide, style=style)
        self.upload = widgets.FileUpload(accept="image/*", description="upload")
        self.free = widgets.Text(description="own question", layout=wide, style=style, continuous_update=False)
        self.layer = widgets.IntSlider(blocks // 2, 0, blocks, description="layer", style=style)
        self.head = widgets.Dropdown(options=[("mean", None)], description="head", style=style)
        self.permuted = widgets.Checkbox(False, description="shuffle the visual tokens", style=style)
        self.answers, self.took = widgets.HTML(), widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self.panel = widgets.VBox([
            widgets.HBox([self.first, self.second]), widgets.HBox([self.benchmark, self.question]),
            widgets.HBox([self.path, self.upload]), self.free, widgets.HBox([self.layer, self.head, self.permuted]),
            self.answers, self.took, self.image,
        ])  # fmt: skip
        self._fitting = False
        self._offer()
        self.benchmark.observe(lambda _: self._offer(), "value")
        for control in (self.first, self.second, self.question, self.free, self.layer, self.head, self.permuted,
                        self.path, self.upload):  # fmt: skip
            control.observe(lambda _: self.update(), "value")
        self.update()

    def _load_run(self, name: str) -> Run:
        compute = self.settings.compute
        run, _, seed = name.rpartition("-s")
        return load_run(
            Paths(self.settings.name).run(run, int(seed)), dtype=getattr(torch, compute.dtype),
            device=distributed.device(), attn_implementation=compute.attention,
        )  # fmt: skip

    def _fit(self, names: list[str]) -> None:
        """Offer the layers and heads that any of the chosen runs has; a choice that none of them has moves to one."""
        configs = [self._run(name).model.config.text_config for name in names]
        heads, kept = max(config.num_attention_heads for config in configs), self.head.value
        self._fitting = True
        self.layer.max = max(config.num_hidden_layers for config in configs)
        self.head.options = [("mean", None), *((str(i), i) for i in range(heads))]
        self.head.value = kept if kept is not None and kept < heads else None
        self._fitting = False

    def _load_rows(self, benchmark: str) -> dict[str, dict]:
        rows = load_rows(benchmark, ROOT / self.settings.data.benchmarks)
        return {row["id"]: row for row in rows[:QUESTIONS]}

    def _offer(self) -> None:
        """Offer the questions of the chosen benchmark."""
        rows = self._rows(self.benchmark.value)
        self.question.options = [(f"{name}: {row['question'][:80]}", name) for name, row in rows.items()]
        self.question.value = next(iter(rows))

    def _chosen(self) -> tuple[Image.Image, str, str | None]:
        """Image, prompt, and its answer key where it has one."""
        row = self._rows(self.benchmark.value)[self.question.value]
        own = self.upload.value[0]["content"].tobytes() if self.upload.value else self.path.value.strip()
        if isinstance(own, str) and own and not Path(own).is_file():
            raise FileNotFoundError(f"no image {own}")
        free = self.free.value.strip()
        return open_image(own or row["image"]), free or row["prompt"], None if own or free else str(row["answer"])

    def _look(self, name: str, pixels: bytes, size: tuple[int, int], question: str, permuted: bool) -> Look:
        image = Image.frombytes("RGB", size, pixels)
        return look(name, self._run(name), image, question, k=self.settings.cknna.k, permuted=permuted)

    def update(self) -> None:
        """Draw what is chosen and say how long it took; what cannot be drawn says why."""
        if self._fitting:  # called by a control that is being fitted to the runs
            return
        start = time.perf_counter()
        try:
            image, question, key = self._chosen()
            names = [name for name in dict.fromkeys([self.first.value, self.second.value]) if name != "none"]
            self._fit(names)
            looks = [self._looks(n, image.tobytes(), image.size, question, self.permuted.value) for n in names]
            self.image.value = png(figure(image, looks, self.layer.value, self.head.value, self.settings.label))
        except (OSError, ValueError) as error:  # what a user can mend: a path, an image, a profile's files
            self.answers.value, self.took.value = f"<b>{html.escape(str(error))}</b>", ""
            return
        lines = [f"<b>{html.escape(question)}</b>".replace("\n", "<br>")]
        lines += [f"<code>{seen.run}</code>: {html.escape(seen.answer) or '<i>nothing</i>'}" for seen in looks]
        lines += [] if key is None else [f"<span style='color: #666'>answer key: {html.escape(key)}</span>"]
        self.answers.value = "<br>".join(lines)
        self.took.value = f"<span style='color: #666'>{time.perf_counter() - start:.1f} s</span>"
