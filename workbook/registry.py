"""The systems of the paper: what an entry of `profiles/runs.yaml` may say, and which run stands behind which result.

An entry states how a run differs from the baseline, or from the run that it `extends`: there null takes a key away.
`uses` lists the rows and panels of the paper that the run supplies, and is not inherited.
"""

from dataclasses import dataclass, field

import yaml

from workbook.schema import ProfileError, build, known, merge


def block_at(depth: float, blocks: int) -> int:
    """The block, 1-based, at a relative depth in (0, 1] of a language model of so many blocks; a half is rounded up.

    0.5 of 32 is block 16, of 7 block 4; 1.0 is the last block's output, before the final norm.
    """
    return max(1, int(depth * blocks + 0.5))


def _check_depth(depth: float) -> None:
    if not 0 < depth <= 1:
        raise ValueError(f"depth {depth} is not in (0, 1]: it is relative, 0.5 is the middle block")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"no {name} {value!r}; there are: {', '.join(choices)}")


@dataclass(frozen=True)
class Align:
    """The alignment loss of one run (Eq. 4-6): what is aligned, where, to what, how strongly.

    `span`: that many blocks on either side of the block at `depth` are aligned too, one loss each, averaged. 1 is the
    paper's 15-17 and 2 its 14-18, around block 16 of 32; of 8 blocks they are 3-5 and 2-6 (neighbours stay neighbours:
    at a quarter of the depth there is nothing between two blocks).

    The rest is for controls. `teacher_state: as_released` gives the teacher that the released code trains with: every
    linear layer drawn anew, N(0, 0.02), and CLIP's pixel normalisation. `train_head: false` leaves the head at its
    random start. `shuffled` aligns each image to the features of another one of the training set, always the same.
    """

    target: str = "teacher"  # "encoder": its own features z (Eq. 4); "projector": post-projection features (Eq. 8)
    teacher: str | None = None
    depth: float = 0.5
    span: int = 0
    objective: str = "cosine"
    weight: float = 0.5  # lambda of Eq. 5
    shared_head: bool = False
    train_head: bool = True
    teacher_state: str = "intact"
    shuffled: bool = False

    def __post_init__(self):
        _check_choice("target", self.target, ("teacher", "encoder", "projector"))
        _check_choice("objective", self.objective, ("cosine", "relation"))
        _check_choice("teacher_state", self.teacher_state, ("intact", "as_released"))
        _check_depth(self.depth)
        if self.span < 0 or self.weight <= 0:
            raise ValueError(f"span {self.span} must not be negative, and weight {self.weight} must be above 0")
        if self.target == "teacher" and self.teacher is None:
            raise ValueError("alignment to a teacher names its `teacher`")
        if self.target != "teacher":
            spare = {"teacher": self.teacher, "shuffled": self.shuffled, "teacher_state": self.teacher_state}
            if given := [key for key, value in spare.items() if value not in (None, False, "intact")]:
                raise ValueError(f"{', '.join(given)} need(s) target teacher, not {self.target}")
        if self.shared_head and not self.span:
            raise ValueError("shared_head needs several layers: give a span")
        if self.teacher == "clip" and self.teacher_state == "as_released":
            raise ValueError("the released code leaves the teacher clip intact: choose another teacher")

    def layers(self, blocks: int) -> list[int]:
        """Aligned blocks, 1-based and ascending, of a language model of so many blocks.

        Raises:
            ValueError: the span reaches beyond the first or the last block.
        """
        centre = block_at(self.depth, blocks)
        first, last = centre - self.span, centre + self.span
        if first < 1 or last > blocks:
            raise ValueError(f"span {self.span} around block {centre} leaves the {blocks} blocks of the language model")
        return list(range(first, last + 1))


@dataclass(frozen=True)
class Residual:
    """Re-injection of visual features after the block at `depth`, visual positions only, in training and inference.

    `source`: "projector" adds P_phi(z) (Eq. 3); "encoder" adds P_phi'(z) with a new linear adapter (Eq. 7).
    """

    source: str
    depth: float = 0.5

    def __post_init__(self):
        _check_choice("source", self.source, ("projector", "encoder"))
        _check_depth(self.depth)


@dataclass(frozen=True)
class Reconstruct:
    """ROSS's objective (Table 6): a denoiser recovers the image's latents from the visual tokens at `depth`.

    At depth 1.0, ROSS's own, these are the last hidden states after the final norm; elsewhere a block's output.
    """

    depth: float = 1.0
    weight: float = 1.0
    vae: str = "vae"  # among the profile's teachers: whose latents

    def __post_init__(self):
        _check_depth(self.depth)
        if self.weight <= 0:
            raise ValueError(f"weight {self.weight} must be above 0")


@dataclass(frozen=True)
class Run:
    """One system of the paper, as it differs from the baseline.

    `architecture`: "llava" (LLaVA-1.5) or "llava_next", which takes images in tiles and LLaVA's stage-1 projector.
    `uses`: {table or figure: the rows, curves or panels of it that this run supplies, in the paper's words}.
    """

    architecture: str = "llava"
    language: str = "vicuna-7b"
    vision: str = "clip"
    align: Align | None = None
    residual: Residual | None = None
    reconstruct: Reconstruct | None = None
    uses: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        _check_choice("architecture", self.architecture, ("llava", "llava_next"))
        if self.tiled and (self.residual or self.reconstruct or (self.align and self.align.shuffled)):
            raise ValueError("residual, reconstruct and shuffled take whole images: choose architecture llava")

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self.architecture == "llava_next"

    @property
    def teacher(self) -> str | None:
        """Name of the teacher whose features this run needs."""
        return self.align.teacher if self.align else None

    def check_layers(self, blocks: int) -> None:
        """Raise ValueError if an aligned block does not exist in a language model of so many blocks."""
        if self.align:
            self.align.layers(blocks)


def resolve(entries: dict[str, dict], where: str = "profiles/runs.yaml") -> dict[str, Run]:
    """Check the entries of a registry and lay each over the one it extends.

    Raises:
        ProfileError: unknown keys or names, contradictions, a circle of `extends`, a row of the paper claimed twice.
    """
    runs = {name: build(Run, _plain(entries, name, where, ()), f"{where}: {name}") for name in entries}
    owners: dict[tuple[str, str], str] = {}
    for name, run in runs.items():
        for place, rows in run.uses.items():
            for row in build(list, rows, f"{where}: {name}.uses.{place}"):
                if (owner := owners.setdefault((place, row), name)) != name:
                    raise ProfileError(f"{where}: {place}, {row!r} is claimed by {owner} and by {name}")
    return runs


def _plain(entries: dict, name: str, where: str, above: tuple[str, ...]) -> dict:
    if name in above:
        raise ProfileError(f"{where}: {' extends '.join([*above, name])}")
    known("run", name, entries, f"{where}: {above[-1]}.extends" if above else where)
    entry = build(dict, entries[name] or {}, f"{where}: {name}")
    if "extends" not in entry:
        return entry
    base = _plain(entries, entry["extends"], where, (*above, name))
    own = {key: value for key, value in entry.items() if key != "extends"}
    return merge({key: value for key, value in base.items() if key != "uses"}, own)


def read(file) -> dict[str, Run]:
    """The runs of a registry file, by name, checked."""
    return resolve(yaml.safe_load(file.read_text()), f"{file.parent.name}/{file.name}")


def rows(place: str, runs: dict[str, Run]) -> dict[str, str]:
    """The rows (or curves, panels) of one table or figure of the paper, such as "Table 2", and the run behind each.

    Raises:
        ProfileError: no run is used there; the message lists the tables and figures that have runs.
    """
    places = {place for run in runs.values() for place in run.uses}
    known("table or figure", place, sorted(places), "registry of runs")
    return {row: name for name, run in runs.items() for row in run.uses.get(place, ())}
