"""Damage to the files that stages write: flipped bytes and cuts, and what reading them says."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

NOTEBOOK = "method_walkthrough"


def damage(file: Path, rng: random.Random) -> str:
    """Change one byte of a file, or cut it; what was done."""
    data = file.read_bytes()
    place = rng.randrange(len(data))
    if rng.random() < 0.2:
        file.write_bytes(data[:place])
        return f"cut after {place} bytes"
    file.write_bytes(data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :])
    return f"byte {place} changed"


def read_damaged(number: int, rng: random.Random) -> dict[str, list[str]]:
    """Damage every kind of file so often: by its name, what came of reading it.

    named: an error that names the file.  harmless: read as before.  RAW: another error.  SILENT: read, but otherwise.
    """
    results = {}
    for file, read in readers():
        before, intact = repr(read()), file.read_bytes()
        outcomes = []
        for _ in range(number):
            done = damage(file, rng)
            try:
                outcomes.append("harmless" if repr(read()) == before else f"SILENT: {done}")
            except Exception as error:
                clear = isinstance(error, (ValueError, FileNotFoundError)) and file.name in str(error)
                outcomes.append("named" if clear else f"RAW: {done}: {error!r}"[:300])
            file.write_bytes(intact)
        results[file.name] = outcomes
    return results


def readers() -> Iterator[tuple[Path, Callable[[], object]]]:
    """Files of every kind, and what reads them, to something whose `repr` says what was read."""
    from viral_core.cache import FeatureCache
    from viral_core.checkpoints import checksum
    from viral_core.run_folder import load_run
    from workbook.logs import read_log
    from workbook.report.pages import section
    from workbook.runs import read_all

    def run() -> tuple:
        loaded = load_run(trained)
        return checksum(loaded.aligned.state_dict()), loaded.aligned.align, loaded.base, loaded.seed, loaded.training

    cache, trained = Path("runs/soak/cache/dinov2-clip"), Path("runs/soak/stage2/viral/s0")
    names = [name for shard in json.loads((cache / "index.json").read_text())["shards"] for name in shard["names"]]
    for file in (cache / "shard-00000.safetensors", cache / "index.json"):
        yield file, lambda: checksum({"features": FeatureCache(cache)(names)})
    for name in ("projector.safetensors", "heads.safetensors", "adapter/adapter_model.safetensors",
                 "adapter/adapter_config.json", "run.json"):  # fmt: skip
        yield trained / name, run
    answers = Path("runs/soak/evaluate/viral/s0/cv_bench.jsonl")
    yield answers, lambda: read_all([answers])
    yield trained / "log.jsonl", lambda: read_log(trained).to_csv()

    notebook = Path(f"runs/soak/notebooks/{NOTEBOOK}.ipynb")
    recorded = {str(notebook): hashlib.md5(notebook.read_bytes()).hexdigest()}

    def shown() -> object:
        part = section(NOTEBOOK, notebook, recorded)
        if not part.ran:
            raise ValueError(f"{notebook} is left out")
        return part

    yield notebook, shown
