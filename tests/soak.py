"""Soak: kill -9 at random moments of every kind of stage, then the same command: results equal to the bit.

    python tests/soak.py --kills 30 --seed 0

Also: the same seed twice, two commands at once, a full and a read-only disk, flipped bytes and cut files.  It works in
a copy of the repository, on small stages with a resume state after every step, about ten minutes on an idle core.
Prints a line for each trial; ends with 1 if one is not as it should be.  Times and environments are not compared.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from soak_damage import NOTEBOOK, damage, read_damaged

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("viral_core", "torch", "transformers.trainer", "transformers.models.llava.modeling_llava", "peft")
PROFILES = {
    "soak": """
extends: smoke
label: what tests/soak.py disturbs
world: {captions: 32, conversations: 32, benchmarks: {cv_bench: 16, mmvp: 4, pope_popular: 24},
        probes: {train: 8, val: 4, test: 4}}
evaluation: {benchmarks: [cv_bench, mmvp, pope_popular]}
stage1: {steps: 5, save_every: 1, log_every: 1}
stage2: {steps: 5, save_every: 1}
attention: {questions: 2, maps: 1}
permutation: {permutations: 1}
probes: {scenes: 8}
runs: {viral: [0]}
""",
    "soak_pair": """
extends: soak
label: two processes
visions: {clip: {cache: null}}
launch: {gpus: 2}
""",
}
UNSTEADY = ("seconds", "teacher_seconds", "crc32")  # in a line of a log


@dataclass
class Kind:
    """A kind of stage: the command, what it writes in `runs/`, of 30 kills its share, whose turn it is to die."""

    name: str
    command: list[str]  # of `python -m workbook`
    outputs: list[str]
    share: int
    victims: tuple[str, ...] = ("",)  # words of a command line of one of its processes; "" is the first one
    before: tuple[list[str], ...] = ()  # commands that it needs


def kinds() -> list[Kind]:
    run = "soak-viral-s0"
    features = [["cache", f"soak-encoder-clip-{part}"] for part in ("captions", "conversations")]
    again = ["repro", "soak", "cache@soak-encoder-clip-captions", "--jobs", "2"]
    return [
        Kind("world", ["world", "soak-world"], ["soak/data"], 1, before=(["profile", "soak"],)),
        Kind("cache", ["cache", "soak-dinov2-clip"], ["soak/cache/dinov2-clip"], 5),
        Kind("stage1", ["stage1", "soak-vicuna-7b-clip"], ["soak/stage1/vicuna-7b-clip"], 5, before=tuple(features)),
        Kind("stage2", ["stage2", run], ["soak/stage2/viral/s0"], 8),
        Kind("evaluate", ["evaluate", run], ["soak/evaluate/viral/s0"], 4),
        Kind("measure", ["measure", run], ["soak/measure/viral/s0"], 2),
        Kind("notebook", ["notebook", NOTEBOOK, "soak"],
             [f"soak/notebooks/{NOTEBOOK}.ipynb", f"soak/results/{NOTEBOOK}"], 1, ("", "ipykernel")),
        Kind("report", ["report", "soak"], ["soak/report"], 1),
        Kind("repro", again, ["soak/data", "soak/cache/encoder-clip-captions"], 2, ("", "dvc")),
        Kind("torchrun", ["stage1", "soak_pair-vicuna-7b-clip"], ["soak_pair/stage1/vicuna-7b-clip"], 1,
             ("", "-m workbook"), (["profile", "soak_pair"], ["world", "soak_pair-world"])),
    ]  # fmt: skip


def start(work: Callable[[], None], log: Path) -> int:
    """Do some work in a forked process, in a session of its own, that prints to a file; its number."""
    if process := os.fork():
        return process
    status = 1
    try:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        work()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(process: int, after: float, word: str = "") -> None:
    """Kill -9 a process after some seconds, or one of those that it has started and that has a word in its command."""
    time.sleep(after)
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process)
        those = [one for one in first.children(recursive=True) if word and word in " ".join(one.cmdline())]
        random.choice(those or [first]).kill()
    if word:  # the others end by themselves, or do not
        with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            psutil.Process(process).wait(20)
            return
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process).kill()
    wait(process)


def contents(*paths: Path) -> dict[str, object]:
    """What files hold, by name, but for times and environments, and what a run that had ended before has left."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    files = [file for file in files if file.name != "environment.json" and ".replaced" not in str(file)]
    return {str(file): _content(file) for file in sorted(files)}


def _content(file: Path) -> object:
    if file.name == "log.jsonl":
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [{key: value for key, value in entry.items() if key not in UNSTEADY} for entry in entries]
    if file.name == "log.csv":
        import pandas as pd

        return pd.read_csv(file).drop(columns=list(UNSTEADY), errors="ignore").to_csv()
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        return [(cell["source"], [output.get("data", "") for output in cell.get("outputs", [])]) for cell in cells]
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Soak:
    """A copy of the repository, in which commands are disturbed, and what came of it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.log, self.rng = folder, folder.with_name("log"), random.Random(seed)
        random.seed(seed)
        self.runs, self.failures, self.trials = folder / "runs", 0, Counter()
        skipped = (".git", ".venv", "runs", "__pycache__", "cache", "tmp", "*.egg-info", "dvc.lock")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*skipped))
        for name, content in PROFILES.items():
            (folder / f"profiles/{name}.yaml").write_text(content, encoding="utf-8")
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)

    def start(self, command: list[str], log: Path | None = None) -> int:
        def work() -> None:
            os.chdir(self.folder)
            os.environ.update(PYTHONPATH=str(self.folder), OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive",
                              PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # fmt: skip
            sys.path.insert(0, str(self.folder))
            sys.argv = ["workbook", *command]
            runpy.run_module("workbook", run_name="__main__", alter_sys=True)

        return start(work, log or self.log)

    def said(self, log: Path | None = None) -> str:
        """What a command printed."""
        return (log or self.log).read_text(encoding="utf-8", errors="replace").strip()

    def run(self, command: list[str], tries: int = 1) -> int:
        """Run a command, again while others that live on have the lock; how often it was refused."""
        for refused in range(tries):
            if wait(self.start(command)) == 0:
                return refused
            if not re.search("under way here|is being run by", self.said()):
                break
            time.sleep(3)
        raise RuntimeError(f"{command}\n{self.said()[-6000:]}")

    def tell(self, kind: str, trial: str, outcome: str, good: bool) -> None:
        self.trials[kind] += 1
        self.failures += not good
        verdict = "" if good else "NOT RIGHT"
        print(f"{time.strftime('%H:%M:%S')}  {kind:9} {trial:58} {outcome} {verdict}", flush=True)

    def clear(self, kind: Kind, work: bool = True) -> None:
        """Leave nothing of what a stage writes, its work folder included."""
        for output in kind.outputs:
            for path in self.runs.glob(f"{output}*" if work else output):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kind.name == "repro" and work:
            (self.folder / "dvc.lock").unlink(missing_ok=True)
            for path in (".dvc/cache", ".dvc/tmp"):
                shutil.rmtree(self.folder / path, ignore_errors=True)

    def outputs(self, kind: Kind) -> dict[str, object]:
        return contents(*(self.runs / output for output in kind.outputs))

    def compare(self, kind: Kind, trial: str, whole: dict, refused: int = 0, aside: int = 0) -> None:
        """Tell whether a stage's results are those of an undisturbed run, and nothing else lies about."""
        now = self.outputs(kind)
        other = [Path(name).name for name in sorted({*whole, *now}) if whole.get(name) != now.get(name)]
        left = [path.name for path in self.runs.rglob("*") if path.suffix in (".part", ".work")]
        kept = [path.name for path in self.runs.rglob("*") if path.suffix in (".damaged", ".other-settings")]
        outcome = f"differ: {', '.join(other)}" if other else "equal"
        outcome += f", refused {refused} times before" * bool(refused) + f", set aside: {len(kept)}" * bool(kept)
        outcome += f", left: {', '.join(left)}" * bool(left)
        self.tell(kind.name, trial, outcome, not other and not left and len(kept) <= aside)

    def kills(self, kind: Kind, number: int) -> None:
        """A kind of stage undisturbed, twice, and then killed so often."""
        for command in kind.before:
            self.run(command)
        self.clear(kind)
        began = time.monotonic()
        self.run(kind.command)
        seconds, whole = time.monotonic() - began, self.outputs(kind)
        if number and kind.name in ("stage1", "stage2", "evaluate"):
            self.clear(kind)
            self.run(kind.command)
            self.compare(kind, "the same seed twice", whole)
        for _ in range(number):
            self.clear(kind)
            after, word = self.rng.uniform(0, seconds), self.rng.choice(kind.victims)
            kill(self.start(kind.command), after, word)
            trial = f"kill -9 {word or 'it'} after {after:.1f} of {seconds:.1f} s"
            states = list(self.runs.glob(f"{kind.outputs[0]}.work/state/*/complete"))
            states.sort(key=lambda file: file.stat().st_mtime)
            damaged = bool(states) and kind.name == "stage2" and self.rng.random() < 0.3
            if damaged:
                damage(self.rng.choice([file for file in states[-1].parent.iterdir() if file.is_file()]), self.rng)
            trial += "".join(f", at state {state.parent.name.split('-')[1]}" for state in states[-1:])
            trial += ", damaged" * damaged
            if kind.name not in ("evaluate", "measure") and self.rng.random() < 0.5:  # as DVC does before a stage
                self.clear(kind, work=False)
            try:
                self.compare(kind, trial, whole, self.run(kind.command, tries=40), aside=damaged)
            except RuntimeError as error:
                self.tell(kind.name, trial, str(error)[-300:], False)

    def bad_disk(self, kind: Kind) -> None:
        """A stage on a disk that becomes full, and on one that cannot be written to."""
        whole, place = self.outputs(kind), self.runs / Path(kind.outputs[0]).parent
        largest = max(file.stat().st_size for file in (self.runs / kind.outputs[0]).rglob("*") if file.is_file())
        for disk in (f"size={4096 + self.rng.randrange(largest)}", "ro"):
            self.clear(kind)
            with mounted(place, disk) as possible:
                if not possible:
                    self.tell(kind.name, f"on a disk of {disk}", "not tried: only root can mount one", True)
                    continue
                status = wait(self.start(kind.command))
                said = ["", *(line for line in self.said().splitlines() if line.startswith("error: "))][-1]
                half = [name for name, value in self.outputs(kind).items() if whole.get(name) != value]
                half = [name for name in half if not name.endswith(".jsonl")]  # which goes on growing
                half += [str(file) for file in self.runs.rglob("*.part")]
                good = status == 1 and "start the same command again" in said
                self.tell(kind.name, f"on a disk of {disk}", f"{said[:150]} {half or ''}", good and not half)
        self.run(kind.command)
        self.compare(kind, "the same command with room", whole)

    def together(self, kind: Kind, second: list[str], expected: str) -> None:
        """A second command while a stage runs: refused, and nothing changes for the first."""
        whole = self.outputs(kind)
        self.clear(kind)
        first = self.start(kind.command)
        other, said = self.folder.with_name("second"), ""
        while not any(self.runs.glob(f"{kind.outputs[0]}*")):  # it has begun
            time.sleep(0.05)
        while expected not in said and psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
            if wait(self.start(second, other)):
                said = self.said(other).splitlines()[-1]
        status = wait(first)
        self.tell(kind.name, f"{' '.join(second)} at the same time", said[:150], expected in said and status == 0)
        self.compare(kind, "the first one", whole)
        self.run(["profile", "soak"])

    def flips(self, number: int) -> None:
        """Damage to every kind of file, and what reading it says."""
        file = self.folder.with_name("flips")

        def work() -> None:
            os.chdir(self.folder)
            sys.path.insert(0, str(self.folder))
            file.write_text(json.dumps(read_damaged(number, self.rng)), encoding="utf-8")

        if wait(start(work, self.log)):
            raise RuntimeError(self.said()[-6000:])
        for name, outcomes in json.loads(file.read_text(encoding="utf-8")).items():
            counts = Counter(outcome.split(":")[0] for outcome in outcomes)
            bad = [outcome for outcome in outcomes if not outcome.startswith(("named", "harmless"))]
            self.tell("damage", f"{number} times to {name}", f"{dict(counts)} {bad[:2] or ''}", not bad)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A disk of its own in place of a folder, where this user may mount one; whether it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=10, help="of each kind of file; 0: kills alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="kinds of stages that are killed (default: all)")
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak, began = Soak(Path(folder) / "clone", options.seed), time.monotonic()
        stages = {kind.name: kind for kind in kinds()}
        for kind in stages.values():
            wanted = options.only is None or kind.name in options.only
            if not wanted and kind.name in ("notebook", "report", "repro", "torchrun"):  # nothing needs them
                continue
            soak.kills(kind, max(1, round(options.kills * kind.share / 30)) if wanted else 0)
            if kind.name == "measure" and options.flips:
                for name in ("cache", "stage1", "stage2", "evaluate", "measure"):
                    soak.bad_disk(stages[name])
                soak.together(stages["stage2"], stages["stage2"].command, "is being run by process")
                soak.together(stages["stage2"], ["profile", "smoke"], "a pipeline is under way here")
            if kind.name == "notebook" and options.flips:
                soak.flips(options.flips)
            if kind.name == "repro":
                soak.together(kind, kind.command, "a pipeline is under way here: make repro PROFILE=soak")
        trials, minutes = sum(soak.trials.values()), (time.monotonic() - began) / 60
    print(f"\n{trials} trials in {minutes:.0f} min, {soak.failures} not right: {dict(soak.trials)}")
    sys.exit(bool(soak.failures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
