"""Models by hub id: which commit is meant, where it is recorded, and whether it is on this machine.

A profile pins a revision or leaves it out; then the first `doctor` (or `fetch`) asks the hub for the commit of the day
and records it in `runs/<profile>/models/`, and from then on that commit is used.  No code of a hub repository is ever
run: every model here has a class in transformers or diffusers, and `trust_remote_code` stays off.
"""

import json
import re
from pathlib import Path

from workbook.paths import ROOT

TIMEOUT = 5.0  # seconds that the hub may take to say which commit a repository is at


class HubError(RuntimeError):
    """The hub cannot say which commit is meant; the message says why, and what to do."""


def is_hub_id(path: str) -> bool:
    """Whether a model's path is `owner/name` on the hub, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not (ROOT / path).is_dir()


def read_pin(file: Path) -> str | None:
    """The commit recorded in a pin file, None if there is none yet."""
    return json.loads(file.read_text())["revision"] if file.is_file() else None


def write_pin(file: Path, hub_id: str, revision: str) -> None:
    """Record a commit; an unchanged file is left alone, so that nothing is run again for it."""
    if read_pin(file) != revision:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"id": hub_id, "revision": revision}, indent=2) + "\n")


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks: its config, or weight files that its index names."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if present := [shard for shard in shards if (folder / shard).is_file()]:
            return missing + sorted(shards - set(present))
    if not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        missing.append("weights (*.safetensors)")
    return missing


def snapshot(hub_id: str, revision: str | None, subfolder: str = "") -> Path | None:
    """The folder of a model in the local hub cache, None if it (or the subfolder wanted) is not there as a whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None
    return None if missing_files(folder / subfolder) else folder


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
        found = api.model_info(hub_id, revision=revision, timeout=TIMEOUT)
        if found.gated:
            api.auth_check(hub_id)
        return found.sha
    except GatedRepoError:
        raise HubError(f"its terms are not accepted: accept them at {page}, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise HubError(f"the hub has no public {hub_id}: correct the path, or set HF_TOKEN for a private one") from None
    except Exception as error:  # of whichever http library the hub's client uses
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubError(f"the hub cannot be reached ({reason})") from None


def download(hub_id: str, revision: str, subfolder: str = "") -> None:
    """Download a model (or a subfolder of it) into the hub cache; what is there already is kept.

    Weights come as safetensors where there are any, as transformers chooses, and never twice.
    """
    from huggingface_hub import HfApi, snapshot_download

    inside = f"{subfolder}/" if subfolder else ""
    names = [name for name in HfApi().list_repo_files(hub_id, revision=revision) if name.startswith(inside)]
    safe = any(name.endswith(".safetensors") for name in names)
    kinds = (".json", ".txt", ".model", ".jinja", ".safetensors" if safe else ".bin")
    wanted = [name for name in names if name.endswith(kinds) and "/" not in name.removeprefix(inside)]
    snapshot_download(hub_id, revision=revision, allow_patterns=wanted)


def download_dataset(hub_id: str, folder: Path, files: list[str]) -> None:
    """Download files (or patterns) of a data set into a folder; what is there already is kept."""
    from huggingface_hub import snapshot_download

    snapshot_download(hub_id, repo_type="dataset", local_dir=folder, allow_patterns=files)
