"""`python -m workbook repro PROFILE`: the pipeline of a profile, as many stages at a time as the machine has cores.

Every stage is run by `dvc repro --single-item`, in the order of DVC's own graph; what each prints goes to
`runs/<profile>/logs/`.  A stage that fails leaves those that do not need it running; what failed is listed at the end.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from statistics import mean

from rich.live import Live
from rich.text import Text

from workbook import fork_server, lock, pipeline
from workbook.config import Profile, ProfileError
from workbook.paths import Paths
from workbook.scale import costs

SHORT = 10  # after so many stages what DVC has recorded of them is moved out of its way
# No difference of content, in `dvc status`: such as of a checkpoint that was deleted after its evaluation.
MISSING = [("changed deps", "deleted"), ("changed outs", "deleted"), ("changed outs", "not in cache")]


def graph(target: str = "") -> dict[str, set[str]]:
    """The stages that a target needs, itself included, or all, and those that each waits for; from `dvc dag`.

    ProfileError, in DVC's words: no such stage, or a pipeline that it cannot read.
    """
    text = _dvc("dag", "--dot", *filter(None, [target]))
    needs: dict[str, set[str]] = {name: set() for name in re.findall(r'^"([^"]+)";?$', text, re.M)}
    for first, then in re.findall(r'^"([^"]+)" -> "([^"]+)"', text, re.M):
        needs.setdefault(first, set())
        needs.setdefault(then, set()).add(first)
    return needs


def _dvc(*command: str) -> str:
    done = subprocess.run(["dvc", *command], capture_output=True, text=True)
    if done.returncode:
        raise ProfileError(done.stderr.strip().removeprefix("ERROR: ") or f"dvc {command[0]} failed without a word")
    return done.stdout


def stale(targets: Iterable[str]) -> dict[str, set[str]]:
    """The stages that are to run for targets, or for all, each with what it waits for of these.

    Those are the stages that have changed and what depends on them.  Of stages whose outputs are only missing, those
    that are targets themselves or are read by a stage that is to run.  ProfileError as of `graph`.
    """
    whole = graph()
    asked = set().union(*(_stages(target, whole) for target in targets)) if targets else set(whole)
    needs = {name: whole[name] for name in _with_needs(asked, whole)}
    missing, changed, unknown = set(), set(), set()
    status = json.loads(_dvc("status", "--json"))  # of all: for each stage that it is given DVC reads its files anew
    for name in status.keys() & needs:
        for kind, how, file in _differences(status[name]):
            if (kind, how) not in MISSING:
                changed.add(name)
            elif kind == "changed outs":
                (unknown if Path(file).exists() else missing).add(name)
    changed |= modified(unknown)
    while more := {name for name, before in needs.items() if before & changed} - changed:
        changed |= more

    def due(run: set[str]) -> set[str]:
        wanted = asked.union(*(needs[name] for name in run))
        again = {name for name in asked if needs[name] & run}  # what is read may have become another
        return changed | missing & wanted | again

    run: set[str] = set()
    while (more := due(run)) != run:
        run = more
    return {name: before & run for name, before in needs.items() if name in run}


def _differences(parts: list[str | dict]) -> Iterator[tuple]:
    """What `dvc status` says of a stage: (kind, how, file) of each file, or of each file of parameters."""
    for part in parts:
        for kind, files in part.items() if isinstance(part, dict) else [(part, {"": None})]:
            yield from ((kind, how, file) for file, how in files.items())


def modified(names: set[str]) -> set[str]:
    """Those of the stages whose outputs are not what is recorded: `dvc status` compares none that its cache lacks.

    Such are outputs that were unpacked, and halves that a killed stage has left in place of a recorded one.
    """
    if not names:
        return names
    from dvc.repo import Repo  # it takes a second

    with Repo() as repo:
        outputs = ((stage.addressing, out) for stage in repo.index.stages for out in stage.outs)
        return {name for name, out in outputs if name in names and "modified" in out.workspace_status().values()}


def _stages(target: str, needs: dict[str, set[str]]) -> set[str]:
    """The stages of a target: one by its name, or whatever else DVC takes for one, as the ends of its graph."""
    if target in needs:
        return {target}
    part = graph(target)
    return set(part).difference(*part.values())


def _with_needs(names: set[str], needs: dict[str, set[str]]) -> set[str]:
    """Stages and all that they wait for, however far."""
    while more := set().union(*(needs[name] for name in names)) - names:
        names = names | more
    return names


class Pipeline:
    """Stages under way: which wait, run, are done or have failed."""

    def __init__(self, settings: Profile, needs: dict[str, set[str]], jobs: int, inherited: tuple[int, ...] = ()):
        self.needs, self.jobs, self.paths = needs, jobs, Paths(settings.name)
        self.inherited = inherited  # the lock: a DVC that outlives this process holds it to its end
        # What a finished training allows comes before the next training, and notebooks last: little waits for them.
        turns = {kind: 1 for kind in pipeline.KINDS} | {"evaluate": 0, "measure": 0}
        self.waiting = sorted(needs, key=lambda name: turns.get(name.partition("@")[0], 2))
        self.running: dict[str, float] = {}
        self.done: set[str] = set()
        self.ran: list[str] = []
        self.failed: dict[str, str] = {}
        timed = costs.read_costs(self.paths.root)
        self.seconds = {f"{cost['stage']}@{cost['key']}": cost["seconds"] for cost in timed}

    def next_stage(self) -> str | None:
        """A stage that can run; it no longer waits."""
        for name in self.waiting:
            if self.needs[name] <= self.done:
                self.waiting.remove(name)
                return name
        return None

    async def run(self, name: str) -> None:
        """`dvc repro` of one stage, which runs it unless it is up to date."""
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", name]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, limit=2**24, pass_fds=self.inherited
        )
        lines = []
        async for data in process.stdout:
            line = data.decode(errors="replace").rstrip("\n").rsplit("\r", 1)[-1]  # of a progress bar the end
            if line.startswith(f"Running stage '{name}'"):
                self.running[name] = time.monotonic()
                self.log(name).unlink(missing_ok=True)
                self.say(f"{name} has begun")
            lines.append(line)
            if name in self.running:
                with self.log(name).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
        if await process.wait() == 0:
            self._end(name)
        else:
            self._fail(name, lines)

    def _end(self, name: str) -> None:
        self.done.add(name)
        if name in self.running:  # it was not up to date
            seconds = time.monotonic() - self.running.pop(name)
            self.ran.append(name)
            kind, key = name.split("@")
            if kind not in pipeline.KINDS:  # the others note it themselves
                costs.note(self.paths.root, kind, key, seconds)
            self.say(f"{name} took {clock(seconds)}")

    def _fail(self, name: str, lines: list[str]) -> None:
        if self.running.pop(name, None) is None:  # DVC has not started it, and says why
            self.log(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        errors = [line for line in lines if re.match(r"(ERROR|error|[\w.]*Error)\b", line)]
        own = [line for line in errors if not line.startswith("ERROR: failed to reproduce")]  # else it is DVC's
        self.failed[name] = (own or errors or lines or ["no message"])[-1]
        self.say(f"{name} FAILED")

    def log(self, name: str) -> Path:
        """What a stage prints."""
        return self.paths.logs / f"{name}.log"

    def say(self, text: str) -> None:
        """A line for an event, with the state of the whole; a terminal shows `__rich__` instead."""
        if not sys.stdout.isatty():
            print(f"{datetime.now():%H:%M:%S}  {text:60}  {self.whole()}", flush=True)

    def left(self) -> float | None:
        """Seconds until the end, from what stages have taken here before; None as long as a kind has not been timed."""
        kinds: dict[str, list[float]] = {}
        for name, seconds in self.seconds.items():
            kinds.setdefault(name.partition("@")[0], []).append(seconds)
        total = 0.0
        for name in [*self.waiting, *self.running]:
            alike = kinds.get(name.partition("@")[0])
            if not alike:
                return None
            spent = time.monotonic() - self.running[name] if name in self.running else 0
            total += max(self.seconds.get(name, mean(alike)) - spent, 0)
        return total / self.jobs

    def whole(self) -> str:
        left = self.left()
        time_left = "" if left is None else f", about {clock(left)} left"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{len(self.done)} of {len(self.needs)} stages{failed}{time_left}"

    def __rich__(self) -> Text:
        lines = [f"  {name:50} {clock(time.monotonic() - start)}" for name, start in sorted(self.running.items())]
        return Text("\n".join([*lines, self.whole()]))


def clock(seconds: float) -> str:
    """A time that a person reads: 41 s, 12 min, 3 h 05."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02}"


async def run_all(run: Pipeline) -> None:
    tasks: set[asyncio.Task] = set()
    while True:
        while len(tasks) < run.jobs and (name := run.next_stage()):
            tasks.add(asyncio.create_task(run.run(name)))
        if not tasks:
            return
        ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        if len(run.done) % SHORT == 0:
            lock.shorten(run.needs.keys() - run.done)


@contextmanager
def _server() -> Iterator[None]:
    """A fork server for the stages."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        command = [sys.executable, "-m", "workbook.fork_server", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            if server.stdout.readline() == b"ready\n":
                os.environ[fork_server.VARIABLE] = path
            try:
                yield
            finally:
                os.environ.pop(fork_server.VARIABLE, None)
                server.stdin.close()


def reproduce(settings: Profile, targets: list[str], jobs: int | None) -> bool:
    """Bring a profile's stages up to date, all or those that `targets` need; whether all are.  Errors as of `alone`."""
    if jobs is None:  # tiny models use one core well and two badly; real ones have the machine
        jobs = (os.cpu_count() or 1) if settings.world and settings.compute.dtype == "float32" else 1
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    for name, value in (("OMP_WAIT_POLICY", "passive"), ("PYTHONWARNINGS", "ignore"), ("TQDM_MININTERVAL", "10"),
                        ("TRANSFORMERS_VERBOSITY", "error")):  # fmt: skip
        os.environ.setdefault(name, value)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a batch system's end, a lost terminal: `finally` is still run
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    with lock.alone(f"make repro PROFILE={settings.name}") as share:
        pipeline.select(settings.name)
        run = Pipeline(settings, stale(targets), jobs, (share(),))
        if not run.needs:
            return conclude(settings, run, began)
        logs = run.paths.logs
        logs.mkdir(parents=True, exist_ok=True)
        print(f"{len(run.needs)} stages of profile {settings.name}, {jobs} at a time; details: {logs}/", flush=True)
        server = _server() if jobs > 1 else nullcontext()
        lock.shorten(run.needs)
        try:
            with server, Live(run, refresh_per_second=2) if sys.stdout.isatty() else nullcontext():
                asyncio.run(run_all(run))
        finally:
            lock.join()
        return conclude(settings, run, began)


def conclude(settings: Profile, run: Pipeline, began: float) -> bool:
    """Say what was made, or what has failed, in one place."""
    paths = Paths(settings.name)
    if run.failed:
        print(f"\n{len(run.failed)} of the stages failed:")
        for name, reason in run.failed.items():
            print(f"  {name}: {reason}\n      {run.log(name)}")
        if run.waiting:
            print(f"not run, because they need these: {', '.join(run.waiting)}")
        return False
    print(f"\n{len(run.ran)} stages run in {clock(time.monotonic() - began)}; everything is up to date.")
    if (page := paths.report / "index.html").is_file():
        print(f"  open first    {page} (make report PROFILE={settings.name})")
    print(f"  notebooks     {paths.root}/notebooks/ (make lab)")
    print(f"  tables        {paths.root}/results/")
    print(f"  runs          {paths.root}/stage2/")
    return True
