"""Profiles and runs: what is trained, on what, at what size.  Everything here is read from YAML and checked.

`load("laptop")` reads `profiles/laptop.yaml` (laid over the profile it `extends`) and the runs of `profiles/runs.yaml`;
`active()` reads `params.yaml`, the resolved profile that the pipeline runs with.  A run's entry states how it differs
from the baseline, or from the run that it `extends`: there null takes a key away.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from workbook import lock
from workbook.paths import PROFILES
from workbook.sections import MEASUREMENTS, SYSTEMS, LearningCurve, Profile, ProfileError, System, check_keys, known

PARAMS = "params.yaml"
# What a profile's file may say: `load` sets the name and the systems.
KEYS = ["extends", "align", "reconstruct", *(key for key in Profile.model_fields if key not in ("name", "systems"))]
# Of a recipe, what is said elsewhere, for every run of its own.
ELSEWHERE = {
    "seed": "a run's seeds stand under `runs`, that of stage 1 is the profile's `seed`",
    "checkpoints": "which a run keeps says `learning_curve`",
    "deepspeed": "the configuration is named by `launch.deepspeed`",
}


class _Loader(lock.Loader):
    """For profiles: numbers such as 2e-4, and an error where a key is repeated, of which the last one would count."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def names() -> list[str]:
    """Names of the profiles that exist."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "runs")


def merge(base: dict, change: dict) -> dict:
    """`base` with the leaves of `change` laid over it; null removes a section; `runs` is replaced as a whole."""
    out = dict(base)
    for key, value in change.items():
        if value is None and isinstance(out.get(key), dict):
            del out[key]
        elif isinstance(value, dict) and isinstance(out.get(key), dict) and key != "runs":
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def validate(kind, data, where: str):
    """Plain YAML as a value of `kind`; ProfileError says the first thing that is wrong, by its dotted path."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))  # json: a mapping may be a dataclass
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        parent, _, key = place.rpartition(".")
        raise ProfileError(f"{where}{': ' * bool(parent)}{parent}: missing key {key}")
    reason = str(first.get("ctx", {}).get("error", "")) or f"{first['msg']}, found {first['input']!r}"
    raise ProfileError(f"{where}{': ' * bool(place)}{place}: {reason}")


def _yaml(file: Path, where: str) -> dict:
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{where} is not YAML in UTF-8: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(f"{where}: expected a mapping, found {data!r}")
    return data


def _extended(read: Callable[[str, str], dict], name: str, where: str, above: tuple[str, ...] = ()) -> dict:
    """What `read` gives for a name, laid over what that extends."""
    if name in above:
        raise ProfileError(f"{where}: {' extends '.join([*above, name])}")
    own = dict(read(name, f"{where}: {above[-1]}.extends" if above else where))
    base = own.pop("extends", None)
    return merge(_extended(read, base, where, (*above, name)), own) if base else own


def _profile(name: str, where: str) -> dict:
    """The YAML of one profile, without those that it extends."""
    known("profile", name, names(), where)
    return _yaml(PROFILES / f"{name}.yaml", f"profiles/{name}.yaml")


def _entries(defaults: dict[str, dict], where: str) -> dict[str, dict]:
    """The entries of runs.yaml, each complete and checked, with what the profile `where` gives those that say nothing.

    ProfileError for a default that all of them overrule.
    """
    entries = _yaml(PROFILES / "runs.yaml", SYSTEMS)

    def read(name: str, where: str) -> dict:
        known("run", name, entries, where)
        return validate(dict, entries[name] or {}, f"{SYSTEMS}: {name}")

    complete = {run: _extended(read, run, SYSTEMS) for run in entries}
    for key, values in defaults.items():
        own = [entry for entry in complete.values() if isinstance(entry.get(key), dict)]
        for name in values:
            if own and all(name in entry[key] for entry in own):
                remedy = f"write an entry of your own in {SYSTEMS}, which `extends` another"
                raise ProfileError(f"{where}: {key}.{name} has no effect, for every run states its own: {remedy}")
        for entry in own:
            entry[key] = values | entry[key]
    for run, entry in complete.items():
        validate(System, entry, f"{SYSTEMS}: {run}")
    return complete


def load(name: str) -> Profile:
    """Read and check a profile and the runs of `profiles/runs.yaml`.

    `align` and `reconstruct` of a profile are what it gives every alignment and reconstruction of its runs.
    ProfileError for an unknown profile, key, run, model or teacher, with the valid names.
    """
    where = f"profiles/{name}.yaml"
    text = json.dumps(_extended(_profile, name, where), default=str)
    data = json.loads(text.replace("{profile}", name))  # paths hold the profile's name
    check_keys(data, KEYS, f"{where}: ")
    defaults = {key: validate(dict, data.pop(key, None) or {}, f"{where}: {key}") for key in ("align", "reconstruct")}
    teacher = {"teacher": ""} if defaults["align"].get("target", "teacher") == "teacher" else {}  # which a run names
    validate(System, {**defaults, "align": teacher | defaults["align"]}, where)
    systems = _entries(defaults, where)
    curve = data.get("learning_curve") and validate(LearningCurve, data["learning_curve"], f"{where}: learning_curve")
    for run in curve.runs if curve else ():
        known("run", run, systems, f"{where}: learning_curve")
        systems[run]["checkpoints"] = curve.fractions
    profile = validate(Profile, {**data, "name": name, "systems": systems}, where)
    for stage, key in product(("stage1", "stage2"), ELSEWHERE):
        if key in data[stage]:
            raise ProfileError(f"{where}: {stage}.{key}: {ELSEWHERE[key]}")
    for measurement in MEASUREMENTS:
        for run in getattr(getattr(profile, measurement), "runs", ()):
            known("run", run, profile.systems, f"{where}: {measurement}")
    return profile


def current(name: str) -> Profile:
    """`load`, with what `dvc exp run -S` has changed in `params.yaml`, if that holds this profile."""
    profile = load(name)
    if Path(PARAMS).is_file() and (selected := active()[0]).name == name:
        systems = profile.systems | selected.systems  # the others are not trained
        profile = selected.model_copy(update={"systems": systems})
    return profile


def active() -> tuple[Profile, dict[str, dict[str, dict]]]:
    """The profile that `params.yaml` holds, and its stages: kind, key, names and folders.

    ProfileError where there is none, or a setting that was changed there is none that a profile may have.
    """
    file = Path(PARAMS)
    if not file.is_file():
        raise ProfileError(f"no {PARAMS}: select a profile first, python -m workbook profile {' | '.join(names())}")
    data = _yaml(file, PARAMS)
    for key in ("stages", "profile", "runs", "trained"):
        if key not in data:
            raise ProfileError(f"{PARAMS}: missing key {key}: select the profile again")
    stages = data.pop("stages")
    data["name"], data["systems"], data["runs"] = data.pop("profile"), data.pop("runs"), data.pop("trained")
    return validate(Profile, {key: value for key, value in data.items() if key in Profile.model_fields}, PARAMS), stages
