"""Models and data sets by hub id: which commit is meant, and whether it is on this machine as a whole.

A profile states the commit of every model; nothing is taken from a branch.  No code of a hub repository is ever run:
every model here has a class in transformers or diffusers, and `trust_remote_code` stays off.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

TIMEOUT = 5.0  # seconds that the hub may take to say which commit a repository is at
# Safetensors where there are any, as transformers chooses; `download` adds .bin weights where there are none.
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


class HubError(RuntimeError):
    """The hub cannot say which commit is meant; the message says why, and what to do."""


def is_hub_id(path: str) -> bool:
    """Whether a model's path is `owner/name` on the hub, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not Path(path).is_dir()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, and not a branch, which moves."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def page(dataset: str, revision: str) -> str:
    """Address of a data set at a commit."""
    return f"https://huggingface.co/datasets/{dataset}/tree/{revision}"


def used(profile) -> list:
    """Language models, encoders, teachers and VAEs that the runs of a profile use, each once."""
    systems = [profile.systems[run] for run in profile.runs]
    teachers = [system.teacher for system in systems if system.teacher]
    teachers += [system.reconstruct.vae for system in systems if system.reconstruct]
    models = [
        *(profile.languages[system.language] for system in systems),
        *(profile.visions[system.vision] for system in systems),
        *(profile.teachers[name] for name in teachers),
    ]
    first: dict = {}  # an encoder that is a teacher, too, counts as the encoder
    for model in models:
        first.setdefault(model.path, model)
    return list(first.values())


def models(profile) -> list:
    """Those of the models used that are named by hub id."""
    return [model for model in used(profile) if is_hub_id(model.path)]


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks: its config, or weight files that its index names."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        present = {shard for shard in shards if (folder / shard).is_file()}
        if present:  # weights in another format have an index, too, and are not downloaded
            return missing + sorted(shards - present)
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        missing.append("weights (*.safetensors)")
    return missing


def _selection(subfolder: str, files: Iterable[str] = FILES) -> dict:
    """What of a repository is downloaded, in the words of `snapshot_download`: files of one folder, none below it."""
    inside = f"{subfolder}/" if subfolder else ""
    return {"allow_patterns": [inside + name for name in files], "ignore_patterns": [f"{inside}*/*"]}


def snapshot(hub_id: str, revision: str, subfolder: str = "") -> Path | None:
    """The folder of a model in the local hub cache, None if it (or its subfolder) is not there as a whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = snapshot_download(hub_id, revision=revision, local_files_only=True, **_selection(subfolder))
    except (LocalEntryNotFoundError, FileNotFoundError):  # the former also for a download that has broken off
        return None
    return None if missing_files(Path(path) / subfolder) else Path(path)


def download(hub_id: str, revision: str, subfolder: str = "") -> None:
    """Download a model (or a subfolder of it) into the hub cache; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(hub_id, revision=revision, **_selection(subfolder)))
    if not list((path / subfolder).glob("*.safetensors")):
        snapshot_download(hub_id, revision=revision, **_selection(subfolder, ["*.bin"]))


def download_dataset(hub_id: str, revision: str, folder: Path, files: list[str]) -> None:
    """Download files (or patterns) of a data set into a folder; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download

    snapshot_download(hub_id, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=files)


def checksum(url: str) -> str | None:
    """The sha256 that the hub states of a large file of its own, None for what lies elsewhere."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.constants import ENDPOINT

    if not url.startswith(f"{ENDPOINT}/"):
        return None
    etag = get_hf_file_metadata(url).etag or ""
    return etag if re.fullmatch("[0-9a-f]{64}", etag) else None


def commit(hub_id: str, revision: str | None = None) -> str:
    """Ask the hub which commit a revision (default: the newest) of a model is.

    Raises:
        HubError: no access to the hub, no such model, or a model whose terms have to be accepted first.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{hub_id}"
    try:
        api = HfApi()
        model = api.model_info(hub_id, revision=revision, timeout=TIMEOUT)
        if model.gated:
            api.auth_check(hub_id)
        return model.sha
    except GatedRepoError:
        raise HubError(f"its terms are not accepted: accept them at {page}, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise HubError(f"the hub has no public {hub_id}: correct the path, or set HF_TOKEN for a private one") from None
    except Exception as error:  # of whichever http library the hub's client uses
        raise HubError(f"the hub cannot be reached ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def go_offline(models: list) -> None:
    """Ask the hub nothing more in this process and its children, if all these models are on this machine as a whole.

    Otherwise transformers asks for each optional file of each model, and waits long where there is no network.
    """
    if not models or any(snapshot(m.path, m.revision, getattr(m, "subfolder", "")) is None for m in models):
        return
    import huggingface_hub.constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the variable was read when the package was imported
