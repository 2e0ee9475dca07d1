"""Profiles are data: checked keys, known names, one pipeline entry per thing to make."""

import ast
import json
import subprocess

import pytest
import yaml

from workbook import pipeline, registry
from workbook import profile as profiles
from workbook.paths import ROOT


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_loads_and_its_stages_are_keyed_by_its_name(name):
    profile = profiles.load(name)
    stages = pipeline.stages(profile)
    assert set(stages) == set(pipeline.KINDS)
    assert all(key.startswith(f"{name}-") for entries in stages.values() for key in entries)
    assert {entry["run"] for entry in stages["stage2"].values()} == set(profile.runs)


# What decides where and how a stage runs, and not what it writes.
AROUND = {"viral_core/distributed.py", "workbook/scale/launch.py", "workbook/profile.py", "viral_core/measure"}


def test_stages_depend_on_the_modules_they_import():
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages = ast.parse((ROOT / "workbook/stages.py").read_text())
    functions = {node.name: node for node in stages.body if isinstance(node, ast.FunctionDef)}
    for name in set(functions) & set(declared):
        imports = [node for node in ast.walk(functions[name]) if isinstance(node, ast.ImportFrom)]
        imported = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
        files = {f.relative_to(ROOT).as_posix() for module in imported if (f := _file(module))}
        assert files - AROUND <= set(declared[name]["do"]["deps"]), name


def _file(imported):
    """The module's file, or its package's folder, that holds an imported name; None outside of this project."""
    place = ROOT.joinpath(*imported.split("."))
    for path in (place, place.parent):
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file() and path not in (ROOT / "viral_core", ROOT / "workbook"):
            return path
    return None


def test_the_four_profiles_exist():
    assert profiles.names() == ["gpu", "laptop", "paper", "smoke"]


def test_committed_params_are_the_laptop_profile():
    shown = subprocess.run(["git", "show", "HEAD:params.json"], cwd=ROOT, capture_output=True, text=True, check=True)
    params = json.loads(shown.stdout)
    assert params == {"profile": "laptop", **pipeline.stages(profiles.load("laptop"))}


def test_profiles_share_no_output():
    outs = {}
    for name in profiles.names():
        for entries in pipeline.stages(profiles.load(name)).values():
            for key, entry in entries.items():
                assert outs.setdefault(entry["out"], key) == key
                if entry["out"].startswith("runs/"):
                    assert entry["out"].startswith(f"runs/{name}/")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles with a copy of the real ones."""
    for file in profiles.PROFILES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return tmp_path


def test_an_unknown_profile_lists_the_others():
    with pytest.raises(profiles.ProfileError, match="no profile 'huge'; there are: gpu, laptop, paper, smoke"):
        profiles.load("huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stag2": {}}, r"unknown key stag2; valid keys: .*stage2"),
        ({"world": {"polo": 3}}, r"world: unknown key polo; valid keys: pool, captions"),
        ({"runs": {"virall": [0]}}, r"no run 'virall'; there are: baseline, viral"),
        ({"world": {"pool": "many"}}, r"world.pool: expected int, found 'many'"),
        ({"world": {"pool": None}}, r"world: missing key pool"),
        ({"stage2": {"batch_sise": 16}}, r"mine.yaml: stage2: unknown key batch_sise; valid keys: batch_size"),
        ({"stage1": {"lr": "fast"}}, r"mine.yaml: stage1.lr: expected float, found 'fast'"),
    ],
)
def test_what_is_wrong_in_a_profile_is_named(folder, change, message):
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": "laptop", **change}))
    with pytest.raises(profiles.ProfileError, match=message):
        profiles.load("mine")


def test_a_run_with_an_unknown_teacher_lists_the_teachers(folder):
    runs = yaml.safe_load((folder / "runs.yaml").read_text())
    runs["mine"] = {"align": {"teacher": "dino"}}
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": "laptop", "runs": {"mine": [0]}}))
    with pytest.raises(profiles.ProfileError, match="no teacher 'dino'; there are: .*dinov2"):
        profiles.load("mine")


def test_a_profile_states_only_what_differs(folder):
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": "laptop", "seed": 7}))
    mine, laptop = profiles.load("mine"), profiles.load("laptop")
    assert mine.seed == 7
    assert mine.world == laptop.world
    assert mine.data.benchmarks == laptop.data.benchmarks.replace("laptop", "mine")


def test_null_is_none_where_there_is_a_none_and_else_the_default(folder):
    changed = {"extends": "laptop", "teachers": {"dinov2": {"cache": None}}, "permutation": None, "seed": None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(changed))
    mine = profiles.load("mine")
    assert (mine.teachers["dinov2"].cache, mine.permutation, mine.seed) == (None, None, 0)
    assert profiles.load("laptop").teachers["dinov2"].cache == "float16"


def test_smoke_has_every_kind_of_stage_that_laptop_has():
    smoke, laptop = (pipeline.stages(profiles.load(name)) for name in ("smoke", "laptop"))
    assert {kind for kind in laptop if laptop[kind]} == {kind for kind in smoke if smoke[kind]}
    assert {entry["kind"] for entry in laptop["teacher"].values()} == {e["kind"] for e in smoke["teacher"].values()}


@pytest.mark.parametrize(("blocks", "layer"), [(32, 16), (40, 20), (28, 14), (8, 4), (10, 5), (7, 4), (30, 15)])
def test_the_middle_layer_of_every_language_model(blocks, layer):
    assert registry.Align(teacher="dinov2", depth=0.5).blocks(blocks) == (layer,)


def test_changing_one_run_changes_its_entries_only(folder):
    before = pipeline.stages(profiles.load("laptop"))
    runs = yaml.safe_load((folder / "runs.yaml").read_text())
    runs["relation"]["align"]["weight"] = 0.25
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    after = pipeline.stages(profiles.load("laptop"))
    changed = {key for kind in before for key in before[kind] if before[kind][key] != after[kind][key]}
    assert changed
    assert all(key.startswith("laptop-relation-s") for key in changed)


def test_an_unknown_stage_key_lists_the_known_ones(tmp_path):
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"stage2": {"laptop-baseline-s0": {}}}))
    with pytest.raises(profiles.ProfileError, match="no stage2 stage 'x'; there are: laptop-baseline-s0"):
        pipeline.entry("stage2", "x", params)
