"""Models by hub id: which commit is meant, and whether it is on this machine as a whole.

A profile states the commit of every model; nothing is taken from a branch.  No code of a hub repository is ever run:
every model here has a class in transformers or diffusers, and `trust_remote_code` stays off.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

# Safetensors where there are any, as transformers chooses; `download` adds .bin weights where there are none.
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def is_hub_id(path: str) -> bool:
    """Whether a model's path is `owner/name` on the hub, and no folder, here or (as `./name`) meant to be here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)) and not Path(path).is_dir()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, and not a branch, which moves."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def roles(profile) -> dict[tuple[str, str], object]:
    """Language models, encoders, teachers and VAEs that the runs of a profile use, by section and name."""
    systems = [profile.systems[run] for run in profile.runs]
    names = [("languages", system.language) for system in systems]
    names += [("visions", system.vision) for system in systems]
    names += [("teachers", system.teacher) for system in systems if system.teacher]
    names += [("teachers", system.reconstruct.vae) for system in systems if system.reconstruct]
    return {(section, name): getattr(profile, section)[name] for section, name in names}


def used(profile) -> list:
    """The models of `roles`, each of its commits once."""
    first: dict = {}  # an encoder that is a teacher, too, counts as the encoder
    for model in roles(profile).values():
        first.setdefault((model.path, model.revision, subfolder(model)), model)
    return list(first.values())


def models(profile) -> list:
    """Those of the models used that are named by hub id."""
    return [model for model in used(profile) if is_hub_id(model.path)]


def subfolder(model) -> str:
    """The folder of a repository that holds the model: of a diffusion model's VAE."""
    return getattr(model, "subfolder", "")


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks: its config, or weight files that its index names."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        present = {shard for shard in shards if (folder / shard).is_file()}
        if present:  # weights in another format have an index, too, and are not downloaded
            return missing + sorted(shards - present)
    return missing if weight_files(folder) else [*missing, "weights (*.safetensors)"]


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a model folder, in one format where it has both."""
    return [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]


def _snapshot(model, files: Iterable[str] = FILES, **options) -> Path:
    """The files of a model's folder, and none below it, from the hub or from its cache."""
    inside = f"{subfolder(model)}/" if subfolder(model) else ""
    patterns = {"allow_patterns": [inside + name for name in files], "ignore_patterns": [f"{inside}*/*"]}
    return Path(huggingface_hub.snapshot_download(model.path, revision=model.revision, **patterns, **options))


def snapshot(model) -> Path | None:
    """The folder of a model's repository in the local hub cache, None if the model is not there as a whole."""
    try:
        path = _snapshot(model, local_files_only=True)
    except FileNotFoundError:  # also for a download that has broken off
        return None
    return None if missing_files(path / subfolder(model)) else path


def folder(model) -> Path | None:
    """Where a model lies on this machine as a whole: its own folder, or that in the hub's cache."""
    if is_hub_id(model.path):
        path = snapshot(model)
        return path and path / subfolder(model)
    path = Path(model.path) / subfolder(model)
    return None if missing_files(path) else path


def download(model) -> None:
    """Download a model into the hub cache; what is there already is not fetched again.

    OSError: no such model, or one whose terms have to be accepted first; and those of the hub's client.
    """
    try:
        path = _snapshot(model)
    except GatedRepoError:
        page = f"https://huggingface.co/{model.path}"
        raise OSError(f"its terms are not accepted: accept them at {page}, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise OSError("the hub has none in public: correct the path, or set HF_TOKEN for a private one") from None
    if not list((path / subfolder(model)).glob("*.safetensors")):
        _snapshot(model, ["*.bin"])


def go_offline(models: list) -> None:
    """Ask the hub nothing more in this process and its children, if all these models are on this machine as a whole.

    Otherwise transformers asks for each optional file of each model, and waits long where there is no network.
    """
    if not models or any(snapshot(model) is None for model in models):
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # the variable was read when the package was imported
