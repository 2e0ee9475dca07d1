"""A choice of runs, image and question turned into what the explorer draws: maps of all layers, so that a moved layer
needs nothing new; a patch, word, token or head takes a few small products of the states that are at hand."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from viral_core import distributed
from viral_core.images import DAMAGED, open_rgb, to_rgb
from viral_core.measure.attention import spatial_entropies
from viral_core.measure.cknna import cknna
from viral_core.measure.inputs import square_side
from viral_core.measure.pca import pca_maps
from viral_core.run_folder import Run, load_run
from viral_core.teachers import KINDS, Teacher, load_teacher
from workbook import config, runs
from workbook.benchmarks import load_rows, open_image
from workbook.explorer.look import Look, first_token, look, shown, similarity, word_map
from workbook.paths import Paths
from workbook.sections import known

HERE = "explorer"  # in messages
Place = Annotated[int, Field(ge=0)]
QUESTIONS = 200  # of a benchmark that are offered


@dataclass(frozen=True)
class Choice:
    """What a user chose; what a link restores."""

    run: str = ""
    beside: str = ""
    teacher: str = ""
    benchmark: str = ""
    row: str = ""  # of the benchmark: a question's id
    image: str = ""  # path of an own image, in place of the question's
    question: str = ""  # an own one
    permuted: bool = False
    layer: Place | None = None  # None: the middle one
    head: Place | None = None  # None: the mean
    token: Place = 0  # of the answers
    patch: tuple[Place, Place] = (0, 0)  # row and column in the first run's grid
    word: str = ""


@dataclass
class Session:
    """Answers choices; holds models and measurements of the last one, until others are chosen."""

    runs: dict[str, Path]  # folder of each run that is offered; of models that see an image as one square grid
    teachers: dict[str, dict]  # arguments of `load_teacher` for each that is offered, without grid and device
    benchmarks: list[str]
    read_rows: Callable[[str], list[dict]]  # of a benchmark, such as `workbook.benchmarks.load_rows`
    folder: Path  # for own images and saved figures
    k: int = 10  # neighbours of CKNNA
    options: dict = field(default_factory=dict)  # of `load_run`: dtype, attn_implementation
    _rows: dict[str, dict[str, dict]] = field(default_factory=dict, init=False)
    _models: dict[tuple[str, str], Run | Teacher] = field(default_factory=dict, init=False)
    _looks: dict[tuple, Look] = field(default_factory=dict, init=False)  # by run and sample
    _measured: tuple = field(default=(None, ()), init=False)  # of what, and what `_measure` returned

    def first(self) -> Choice:
        """The choice that the explorer opens with: a run, beside it the first that VIRAL trained."""
        names = list(self.runs)
        beside = next((name for name in names if name.startswith("viral-")), names[-1])
        benchmark = self.benchmarks[0]
        return Choice(
            run=names[0],
            beside="" if beside == names[0] else beside,
            teacher=next(iter(self.teachers), ""),
            benchmark=benchmark,
            row=next(iter(self.rows(benchmark))),
        )

    def rows(self, benchmark: str) -> dict[str, dict]:
        """The questions that are offered, by their id."""
        known("benchmark", benchmark, self.benchmarks, HERE)
        if benchmark not in self._rows:
            self._rows[benchmark] = {str(row["id"]): row for row in self.read_rows(benchmark)[:QUESTIONS]}
        return self._rows[benchmark]

    def upload(self, content: bytes) -> str:
        """Path of an own image's copy, in the session's folder; ValueError for bytes that are no image."""
        try:
            image = to_rgb(Image.open(io.BytesIO(content)))
        except DAMAGED as error:
            raise ValueError(f"the file is no image that Pillow reads ({error}): take a png or a jpeg") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"own-{hashlib.sha256(content).hexdigest()[:12]}.png"
        image.save(path)
        return str(path)

    def save(self, picture: bytes) -> Path:
        """Write a picture (png) of what is seen into the session's folder, under a number of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [path.stem.removeprefix("figure-") for path in self.folder.glob("figure-*.png")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=0)  # others a user has named
        path = self.folder / f"figure-{last + 1:03d}.png"
        path.write_bytes(picture)
        return path

    def view(self, choice: Choice) -> dict:
        """What the drawing shows of a choice; ValueError or OSError for what a user can mend.

        Its question, key (of a benchmark's question, else ""), picture (png), grid (tokens along a side); answers, per
        run: its name and tokens; panels, of the encoder, the teacher and the runs in this order: title, layers, grid,
        and the maps `pca` and `similarity` (see `levels`); of a run `attention` with its `entropy` or in `missing` why
        there is none, `lens` of a `word`, the `words` at the patch, and `curves` of CKNNA.
        """
        image, question, key = self._sample(choice)
        names = [name for name in dict.fromkeys([choice.run, choice.beside]) if name]
        for name in names:
            known("run", name, self.runs, HERE)
        if choice.teacher:
            known("teacher", choice.teacher, self.teachers, HERE)
        chosen = {("run", name) for name in names} | {("teacher", choice.teacher)}
        self._models = {key: model for key, model in self._models.items() if key in chosen}  # before others are loaded

        sample = hashlib.sha256(image.tobytes()).hexdigest(), image.size, question, choice.permuted
        if self._measured[0] != (names, choice.teacher, sample):
            self._looks = {key: seen for key, seen in self._looks.items() if key[0] in names and key[1] == sample}
            for name in names:
                if (name, sample) not in self._looks:
                    self._looks[name, sample] = look(self._run(name), image, question, choice.permuted)
            looks = {name: self._looks[name, sample] for name in names}
            self._measured = (names, choice.teacher, sample), self._measure(looks, choice.teacher, image)
        looks, vectors, colours, curves, picture = self._measured[1]
        first, panels = looks[choice.run], []
        for title, states in vectors.items():
            grid = square_side(states.shape[1])
            row, column = (min(place, first.grid - 1) * grid // first.grid for place in choice.patch)
            patch = row * grid + column
            panel = {"title": title, "layers": len(states), "grid": grid, "pca": colours[title]}
            panel["similarity"] = levels(similarity(states, patch))
            if title in looks:
                panel |= _attention(looks[title], choice) | self._words(title, looks[title], choice, patch)
                panel["curves"] = curves[title]
            panels.append(panel)
        return {
            "question": question,
            "key": key,
            "picture": picture,
            "grid": first.grid,
            "answers": [{"run": name, "tokens": seen.tokens} for name, seen in looks.items()],
            "panels": panels,
        }

    def _measure(self, looks: dict[str, Look], teacher: str, image: Image.Image) -> tuple:
        """Looks of the runs; vectors (layers, N, D) of encoder, teacher and runs, their colours; curves; picture."""
        first = next(iter(looks.values()))
        vectors = {"encoder": first.features[None]}
        if teacher:
            vectors[teacher] = self._teacher(teacher, first)([image])[:, torch.from_numpy(first.order)]
        vectors |= {name: seen.states for name, seen in looks.items()}
        curves = {name: self._curves(seen, vectors.get(teacher), teacher) for name, seen in looks.items()}
        return looks, vectors, _colours(vectors), curves, _png(shown(image, first))

    def _sample(self, choice: Choice) -> tuple[Image.Image, str, str]:
        """Image, question, and the key of a benchmark's own."""
        rows = self.rows(choice.benchmark)
        known("question", choice.row, rows, HERE)
        row = rows[choice.row]
        if choice.image and not Path(choice.image).is_file():
            raise FileNotFoundError(f"no image {choice.image}: give the path of a file, or drop one here")
        image = open_rgb(choice.image) if choice.image else open_image(row["image"])
        own = choice.question.strip()
        return image, own or row["prompt"], "" if own or choice.image else str(row["answer"])

    def _run(self, name: str) -> Run:
        if ("run", name) not in self._models:
            self._models["run", name] = load_run(self.runs[name], device=distributed.device(), **self.options)
        return self._models["run", name]

    def _teacher(self, name: str, student: Look) -> Teacher:
        """A teacher on a student's grid, that sees images padded as the student does."""
        teacher = self._models.get(("teacher", name))
        if teacher is None or (teacher.grid, teacher.color) != (student.grid, student.color):
            arguments = self.teachers[name] | {"grid": student.grid, "color": student.color}
            teacher = load_teacher(device=distributed.device(), **arguments)
            self._models["teacher", name] = teacher
        return teacher

    def _curves(self, seen: Look, teacher: torch.Tensor | None, name: str) -> dict[str, list]:
        """CKNNA of a run's layers to its encoder, and to a teacher (1, N, d) on its grid."""
        targets = {"encoder": seen.features}
        if teacher is not None and teacher.shape[1] == len(seen.features):
            targets[name] = teacher[0]
        k = min(self.k, len(seen.features) - 1)
        curves = {name: cknna(seen.states.float(), target.float()[None], k) for name, target in targets.items()}
        return {name: _plain(curve.cpu().numpy()) for name, curve in curves.items()}

    def _words(self, name: str, seen: Look, choice: Choice, patch: int) -> dict:
        """The logit lens: the most probable words per layer at the chosen patch, and the map of one word.

        The word is the chosen one, else the chosen token of the answer, else the most probable at the patch.
        """
        run = self._run(name)
        decode = run.processor.tokenizer.decode
        words = [
            [(decode([token]), p) for token, p in zip(*layer, strict=True)]
            for layer in zip(seen.words[:, patch].tolist(), seen.probabilities[:, patch].tolist(), strict=True)
        ]
        if choice.word:
            token = first_token(run, choice.word)
        else:
            answer = [token for token in seen.ids[choice.token : choice.token + 1] if decode([token]).strip()]
            token = next(iter(answer), int(seen.words[-1, patch, 0]))
        return {"words": words, "word": decode([token]), "lens": levels(word_map(run, seen, token), from_zero=True)}


def levels(maps: torch.Tensor, from_zero: bool = False) -> dict:
    """Maps (layers, N) as they travel: bytes, 0 to 255 between each layer's own `low` (or zero) and `high`."""
    maps = np.asarray(maps.cpu(), dtype=np.float64)
    low = np.zeros(len(maps)) if from_zero else maps.min(1)
    high = maps.max(1)
    span = np.where(high > low, high - low, 1)
    scaled = np.rint((maps - low[:, None]) / span[:, None] * 255).astype(np.uint8)
    return {"values": scaled.tobytes(), "low": low.tolist(), "high": high.tolist()}


def _colours(vectors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """PCA maps of unit vectors (layers, N, D): (layers, N, 3) bytes each.

    Runs of one width share the basis, as their layers do: a colour then means the same in every map.
    """
    groups: dict[object, list[str]] = {}
    for name, states in vectors.items():
        groups.setdefault(states.shape[-1] if len(states) > 1 else name, []).append(name)
    colours = {}
    for alike in groups.values():
        sets = [F.normalize(layer.float(), dim=-1) for name in alike for layer in vectors[name]]
        maps = iter(pca_maps(sets))
        for name in alike:
            layers = np.stack([next(maps) for _ in vectors[name]])
            colours[name] = np.rint(layers * 255).astype(np.uint8).tobytes()
    return colours


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as they travel: NaN is no json."""
    return [None if np.isnan(value) else float(value) for value in values]


def _attention(seen: Look, choice: Choice) -> dict:
    """The attention of a token of the answer, from block 1 on, with its entropy; or why there is none."""
    heads = seen.attention.shape[2]
    if not seen.tokens:
        return {"missing": "the answer is empty"}
    if choice.head is not None and choice.head >= heads:
        return {"missing": f"no head {choice.head}: 0 to {heads - 1}"}
    weights = seen.attention[min(choice.token, len(seen.tokens) - 1)]
    weights = weights.mean(1) if choice.head is None else weights[:, choice.head]
    entropies = spatial_entropies(weights.unflatten(-1, (seen.grid, seen.grid)))
    return {"attention": levels(weights, from_zero=True), "entropy": _plain(entropies), "heads": heads}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def of_profile(profile: str) -> Session:
    """The session of a profile's trained runs, from the repository's root; FileNotFoundError where there are none."""
    settings, paths = config.load(profile), Paths(profile)
    folders = runs.folders(profile).items()
    whole = {f"{run}-s{seed}": folder for (run, seed), folder in folders if not settings.systems[run].tiled}
    if not whole:
        raise FileNotFoundError(
            f"profile {profile} has no trained run yet: `make repro PROFILE={profile}` trains them, "
            "or choose another profile in the parameters cell"
        )
    aligned = (settings.systems[run].teacher for run in settings.runs)  # the explorer opens with the first of them
    teachers = {
        name: settings.teachers[name].model_dump(include={"kind", "path", "revision"})
        for name in dict.fromkeys([*filter(None, aligned), *settings.teachers])
        if settings.teachers[name].kind in KINDS
    }
    return Session(
        whole,
        teachers,
        settings.evaluation.benchmarks,
        lambda benchmark: load_rows(benchmark, settings.data.benchmarks),
        paths.root / "explorer",  # no output of a stage: DVC would remove what a user saved
        settings.cknna.k,
        {"dtype": getattr(torch, settings.compute.dtype), "attn_implementation": settings.compute.attention},
    )
