"""The systems of the paper: what an entry of `profiles/runs.yaml` may say, and which run stands behind which result.

An entry states how a run differs from the baseline, or from the run that it `extends`: there null takes a key away.
`uses` lists the rows and panels of the paper that the run supplies, and is not inherited.
"""

from dataclasses import dataclass, field

import yaml

from viral_core.specs import Align, Reconstruct, Residual, check_choice
from workbook.schema import ProfileError, build, known, merge


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
        check_choice("architecture", self.architecture, ("llava", "llava_next"))
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
            self.align.blocks(blocks)


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
