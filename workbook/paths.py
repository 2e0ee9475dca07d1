"""Where things are: the one place that knows the folders of the repository."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "profiles"
DEEPSPEED = PROFILES / "launch"


@dataclass(frozen=True)
class RunPaths:
    """Folders of one profile's results, relative to the repository's root."""

    profile: str

    @property
    def root(self) -> Path:
        return Path("runs") / self.profile

    @property
    def data(self) -> Path:
        return self.root / "data"

    def manifest(self, part: str) -> Path:
        """Records what the images of `captions` or `conversations` are; DVC tracks it in their place."""
        return self.root / "manifest" / f"{part}.json"

    def cache(self, teacher: str, vision: str, state: str = "intact", tiled: bool = False) -> Path:
        name = [teacher, vision, *([] if state == "intact" else [state]), *(["tiles"] if tiled else [])]
        return self.root / "cache" / "-".join(name)

    def words(self, language: str, vision: str) -> Path:
        return self.root / "words" / f"{language}-{vision}"

    def stage1(self, language: str, vision: str) -> Path:
        return self.root / "stage1" / f"{language}-{vision}"

    def run(self, name: str) -> Path:
        return self.root / "stage2" / name

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluation"

    def evaluation(self, name: str) -> Path:
        return self.evaluations / name

    @property
    def similarities(self) -> Path:
        return self.root / "cknna"

    def cknna(self, name: str) -> Path:
        return self.similarities / f"{name}.csv"

    def measured(self, kind: str) -> Path:
        """Folder of what a kind of stage makes, one entry per run; all models are in one folder."""
        folders = {"vision": self.root / "models", "evaluate": self.evaluations, "cknna": self.similarities}
        return folders.get(kind, self.root / kind)

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def results(self, name: str) -> Path:
        return self.root / "results" / name
