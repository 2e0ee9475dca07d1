"""Where things are: the one place that knows the folders of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "profiles"
DEEPSPEED = PROFILES / "launch"


class Paths:
    """Folders of one profile's results, as `params.yaml` and DVC name them: from the repository's root.

    That is the working directory of stages and, after `begin`, of notebooks.
    """

    def __init__(self, profile: str):
        self.root = Path("runs", profile)
        self.data = self.root / "data"
        self.report = self.root / "report"
        self.logs = self.root / "logs"  # what stages print
        self.recorded = self.root / "recorded"  # archives, in git

    def manifest(self, part: str) -> Path:
        """Records what the images of `captions` or `conversations` are; DVC tracks it in their place."""
        return self.root / "manifest" / f"{part}.json"

    def cache(self, model: str, vision: str, state: str = "intact", tiled: bool = False) -> Path:
        """Features of the instruction images: a teacher's, or a VAE's latents, on the grid of an encoder."""
        name = [model, vision, *([] if state == "intact" else [state]), *(["tiles"] if tiled else [])]
        return self.root / "cache" / "-".join(name)

    def encoder_cache(self, vision: str, part: str) -> Path:
        """An encoder's own features of the images of `captions` or `conversations`."""
        return self.root / "cache" / f"encoder-{vision}-{part}"

    def stage1(self, language: str, vision: str) -> Path:
        return self.root / "stage1" / f"{language}-{vision}"

    def run(self, run: str, seed: int) -> Path:
        """A trained run: its weights, log and kept checkpoints."""
        return self.root / "stage2" / run / f"s{seed}"

    def evaluation(self, run: str, seed: int) -> Path:
        """Answers of a run to the benchmarks; those of its checkpoints, and its log, lie in there too."""
        return self.root / "evaluate" / run / f"s{seed}"

    def measurement(self, run: str, seed: int) -> Path:
        """What the profile wants measured on a run: CKNNA, attention, permutation, probes."""
        return self.root / "measure" / run / f"s{seed}"

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def results(self, notebook: str) -> Path:
        """Tables and figures of a notebook."""
        return self.root / "results" / notebook
