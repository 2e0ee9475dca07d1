"""Profiles and runs are data: checked keys, known names, one line of params.yaml per thing to make."""

import ast
import re
from types import SimpleNamespace

import pytest
import yaml
from commands import PROFILES

from viral_core.specs import Align
from workbook import benchmarks, config, paper, pipeline, stages
from workbook.config import ProfileError
from workbook.paths import ROOT

# What the paper's tables and figures show: by number and row of a table, what the model behind it is.
LLAVA = dict(language="vicuna-7b", vision="clip", teacher=None, layers=None, objective=None, residual=None)
VIRAL = LLAVA | dict(teacher="dinov2", layers=[16], objective="cosine")
ENCODER = LLAVA | dict(layers=[16], objective="cosine", target="encoder")
QWEN = dict(language="qwen-7b")
LARGE = dict(language="vicuna-13b")
SIGLIP = dict(vision="siglip2")
PAPER = {
    1: {
        "Vicuna-1.5-7B, CLIP": LLAVA,
        "Vicuna-1.5-7B, CLIP, L_VRA": VIRAL,
        "Vicuna-1.5-7B, SigLIPv2": LLAVA | SIGLIP,
        "Vicuna-1.5-7B, SigLIPv2, L_VRA": VIRAL | SIGLIP,
        "Qwen2.5-7B, CLIP": LLAVA | QWEN,
        "Qwen2.5-7B, CLIP, L_VRA": VIRAL | QWEN | dict(layers=[14]),
        "Vicuna-1.5-13B, CLIP": LLAVA | LARGE,
        "Vicuna-1.5-13B, CLIP, L_VRA": VIRAL | LARGE | dict(layers=[20]),
    },
    2: {
        "Baseline": LLAVA,
        "VFM: DINOv2, layer 16": VIRAL,
        "VFM: CLIP, layer 16": ENCODER,  # the same target, the same numbers
        "VFM: SAM, layer 16": VIRAL | dict(teacher="sam"),
        "VFM: DAv2, layer 16": VIRAL | dict(teacher="depth_anything"),
        "VFM: RADIO, layer 16": VIRAL | dict(teacher="radio"),
        **{f"DINOv2, layer {layer}": VIRAL | dict(layers=[layer]) for layer in (4, 8, 12, 16, 20, 24, 28, 32)},
    },
    3: {"CLIP": LLAVA, "CLIP, L_VRA": VIRAL, "SigLIPv2": LLAVA | SIGLIP, "SigLIPv2, L_VRA": VIRAL | SIGLIP},
    4: {
        "Baseline": LLAVA,
        "(b) residual, post-projection": LLAVA | dict(residual=("projector", 0.5)),
        "(c) alignment to encoder features": ENCODER,
        "(d) residual, pre-projection": LLAVA | dict(residual=("encoder", 0.5)),
        "(e) alignment to post-projection features": ENCODER | dict(target="projector"),
    },
    5: {
        "Baseline": LLAVA,
        "DINOv2, layer 16, cosine": VIRAL,
        "DINOv2, layers 15-17, cosine": VIRAL | dict(layers=[15, 16, 17]),
        "DINOv2, layers 14-18, cosine": VIRAL | dict(layers=[14, 15, 16, 17, 18]),
        "DINOv2, layer 16, relation": VIRAL | dict(objective="relation"),
    },
    6: {
        "Baseline": LLAVA,
        "ROSS (Default)": LLAVA | dict(reconstruct=1.0),
        "ROSS (Middle)": LLAVA | dict(reconstruct=0.5),
        "VIRAL": VIRAL,
    },
}
CONTROLS = {
    "as-released": dict(teacher_state="as_released", train_head=False),
    "shuffled-teacher": dict(shuffled=True),
    "lambda-0_1": dict(weight=0.1),
    "lambda-0_25": dict(weight=0.25),
    "lambda-1": dict(weight=1.0),
}


@pytest.fixture(scope="module")
def paper_profile():
    return config.load("paper")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles with a copy of the real ones."""
    for file in config.PROFILES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    return tmp_path


def mine(folder, change: dict, entry: dict | None = None) -> config.Profile:
    """A profile `mine` on top of laptop, with an entry `mine` of its own in runs.yaml if one is given."""
    if entry is not None:
        runs = folder / "runs.yaml"
        runs.write_text(runs.read_text() + yaml.safe_dump({"mine": entry}))
        change = {"runs": {"mine": [0]}, **change}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": "laptop", **change}))
    return config.load("mine")


# Profiles


def test_the_profiles_that_exist():
    assert set(PROFILES) <= set(config.names())
    with pytest.raises(ProfileError, match="no profile 'huge'; there are: gpu, laptop, paper"):
        config.load("huge")


def test_a_profile_has_a_name_that_dvc_can_key(folder):
    (folder / "my profile@1.yaml").write_text("extends: laptop\n")
    with pytest.raises(ProfileError, match=r"my profile@1.yaml: name: .*pattern .*found 'my profile@1'"):
        config.load("my profile@1")


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_and_its_stages_are_its_own(name):
    profile = config.load(name)
    index = pipeline.stages(profile)
    assert all(key.startswith(f"{name}-") for entries in index.values() for key in entries)
    assert {item["run"] for item in index["stage2"].values()} == set(profile.runs)
    outs = [item["out"] for entries in index.values() for item in entries.values()]
    assert len(set(outs)) == len(outs)
    assert all(out.startswith(f"runs/{name}/") for out in outs)


@pytest.mark.parametrize("name", PROFILES)
def test_params_are_the_profile_again(name, tmp_path, monkeypatch):
    """What stages read is what the profile says: nothing is lost on the way through params.yaml."""
    profile = config.load(name)
    monkeypatch.chdir(tmp_path)
    assert pipeline.select(name)
    assert not pipeline.select(name)
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    assert name == "study" or len(text.splitlines()) < 650
    read, index = config.active()
    assert index == pipeline.stages(profile)
    assert read == profile.model_copy(update={"systems": {run: profile.systems[run] for run in profile.runs}})
    assert all((tmp_path / f"runs/{name}/evaluate/{run}").is_dir() for run in profile.systems)


def test_committed_params_are_the_laptop_profile():
    committed = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert committed == pipeline.parameters(config.load(committed["profile"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stag2": {}}, r"mine.yaml: unknown key stag2; valid keys: extends, align, reconstruct, label, .*stage2"),
        ({"systems": {}}, r"^profiles/mine.yaml: unknown key systems; valid keys: "),
        ({"align": {"weigth": 0.9}}, r"^profiles/mine.yaml: align: unknown key weigth; valid keys: target, "),
        ({"align": {"hidden": "wide"}}, r"^profiles/mine.yaml: align.hidden: .*integer, found 'wide'"),
        ({"align": 0.9}, r"^profiles/mine.yaml: align: .*found 0.9"),
        (
            {"align": {"weight": 0.9}},
            r"^profiles/mine.yaml: align.weight has no effect.* entry .*profiles/runs.yaml",
        ),
        ({"reconstruct": {"depth": 0.5}}, r"^profiles/mine.yaml: reconstruct.depth has no effect"),
        ({"stage2": {"seed": 3}}, r"^profiles/mine.yaml: stage2.seed: a run's seeds stand under `runs`"),
        ({"stage1": {"checkpoints": [0.5]}}, r"^profiles/mine.yaml: stage1.checkpoints: .* `learning_curve`"),
        ({"stage2": {"deepspeed": {}}}, r"^profiles/mine.yaml: stage2.deepspeed: .* `launch.deepspeed`"),
        ({"world": {"polo": 3}}, r"mine.yaml: world: unknown key polo; valid keys: "),
        ({"runs": {"virall": [0]}}, r"^profiles/mine.yaml: runs: no run 'virall'; there are: viral, .*baseline"),
        ({"world": {"captions": "many"}}, r"mine.yaml: world.captions: .*integer, found 'many'"),
        ({"world": {"captions": None}}, r"mine.yaml: world: missing key captions"),
        ({"label": None}, r"mine.yaml: missing key label"),
        ({"stage2": {"batch_sise": 16}}, r"mine.yaml: stage2: unknown key batch_sise; valid keys: batch_size"),
        ({"stage1": {"lr": "fast"}}, r"mine.yaml: stage1.lr: .*number, found 'fast'"),
        ({"stage1": [1]}, r"mine.yaml: stage1: .*found \[1\]"),
        ({"runs": {"viral": []}}, r"mine.yaml: runs.viral: .*at least 1"),
        ({"runs": {"viral": [0, 0]}}, r"mine.yaml: runs.viral: seeds must differ"),
        ({"runs": {"viral": [0.5]}}, r"mine.yaml: runs.viral.0: .*integer, found 0.5"),
        ({"runs": {"viral": [-1]}}, r"mine.yaml: runs.viral.0: .*found -1"),
        ({"attention": {"runs": ["virall"]}}, r"mine.yaml: attention: no run 'virall'"),
        ({"learning_curve": {"runs": ["virall"]}}, r"mine.yaml: learning_curve: no run 'virall'"),
        ({"projectors": {"vicuna-clip": "x"}}, r"no pair of language and vision 'vicuna-clip'; .*: vicuna-7b-clip"),
        ({"tiles": {"grids": [[2]]}}, r"mine.yaml: tiles.grids.0: .*at least 2"),
        ({"tiles": {"grids": []}}, r"mine.yaml: tiles.grids: .*at least 1"),
        ({"template": "plainn"}, r"mine.yaml: template: .*'vicuna_v1', 'qwen' or 'plain', found 'plainn'"),
        ({"languages": {"vicuna-7b": {"template": "vicuna"}}}, r"languages.vicuna-7b.template: .*found 'vicuna'"),
        ({"learning_curve": {"fractions": [0.5, 20.0]}}, r"learning_curve: fractions.1: .*equal to 1, found 20.0"),
        ({"learning_curve": {"fractions": [0.0]}}, r"learning_curve: fractions.0: .*greater than 0, found 0.0"),
        ({"learning_curve": {"benchmarks": ["pope"]}}, r"learning_curve.benchmarks: pope not in evaluation.benchmarks"),
        ({"probes": {"scenes": 500}}, r"mine.yaml: probes.scenes: 500, of 400 \(world.probes.train\)"),
        ({"world": None}, r"mine.yaml: probes read labels of drawn scenes, .*`probes: null`"),
        ({"compute": {"dtype": "int8"}}, r"mine.yaml: compute.dtype: .*'float32' or 'bfloat16', found 'int8'"),
        ({"launch": {"gpus": 0}}, r"mine.yaml: launch.gpus: .*greater than 0"),
        ({"launch": {"deepspeed": "zero9"}}, r"no DeepSpeed configuration 'zero9'; there are: zero\d, "),
        ({"languages": {"my.model": {"path": "x", "template": "qwen", "blocks": 2}}}, r"languages.my.model: .*pattern"),
        ({"teachers": {"dinov2": {"path": "owner/model"}}}, r"needs its commit as `revision`"),
        ({"stage2": {"lr": float("nan")}}, r"mine.yaml: stage2: lr is nan: give a finite number"),
        ({"lora": {"dropout": float("inf")}}, r"mine.yaml: lora: dropout is inf"),
        ({"extends": "mine"}, r"mine.yaml: mine extends mine"),
    ],
)
def test_what_is_wrong_in_a_profile_is_named(folder, change, message):
    with pytest.raises(ProfileError, match=message):
        mine(folder, change)


@pytest.mark.parametrize("where", ["mine", "runs"])
def test_a_repeated_key_is_named(folder, where):
    (folder / "mine.yaml").write_text("extends: laptop\n")
    file = folder / f"{where}.yaml"
    first = file.read_text()
    file.write_text(f"{first}twice: {{a: 1}}\nother:\ntwice: {{a: 2}}\n")
    line = len(first.splitlines()) + 3
    with pytest.raises(
        ProfileError, match=rf"^profiles/{where}.yaml is not YAML.*'twice' is repeated\n.* line {line},"
    ):
        config.load("mine")


def test_profiles_whose_stages_share_a_key_are_refused(folder, tmp_path, monkeypatch):
    mine(folder, {"runs": {"13b-baseline": [0]}})
    (folder / "mine-13b.yaml").write_text("extends: laptop\nruns: {baseline: [0]}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine-13b"):
        with pytest.raises(ProfileError, match="share stage2@mine-13b-baseline-s0: rename one of them"):
            pipeline.select(name)
    (folder / "mine-13b.yaml").write_text("extends: laptop\nruns: {viral: [0]}\n")
    assert pipeline.select("mine")


def test_notebooks_read_a_setting_that_an_experiment_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.current("laptop").cknna.k == config.load("laptop").cknna.k
    pipeline.select("laptop")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["cknna"]["k"] = 20
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert config.current("laptop").cknna.k == 20
    assert config.current("laptop").systems == config.load("laptop").systems  # of those that are not trained, too
    assert config.current("study") == config.load("study")


def test_a_run_that_joins_a_measurement_changes_no_other(folder):
    before = pipeline.parameters(mine(folder, {}))
    runs = config.load("laptop").learning_curve.runs
    more = {"learning_curve": {"runs": [*runs, "relation"]}, "cknna": {"runs": ["viral", "relation"]}}
    after = pipeline.parameters(mine(folder, more))
    one, other = (part["stages"]["stage2"] for part in (before, after))
    changed = {key for key in one if one[key] != other[key]}
    assert changed == {"mine-relation-s0"}
    assert (one["mine-relation-s0"]["asked"], other["mine-relation-s0"]["asked"]) == (
        "evaluation",
        "learning_curve.benchmarks",
    )
    assert "relation" not in before["measured"]
    assert after["measured"]["viral"] == before["measured"]["viral"]
    assert list(after["measured"]["relation"]) == ["cknna"]


def test_a_number_without_a_point(folder):
    (folder / "mine.yaml").write_text("extends: laptop\nstage2: {lr: 2e-4, projector_lr: 1E+1}\n")
    stage2 = config.load("mine").stage2
    assert (stage2.lr, stage2.projector_lr) == (0.0002, 10.0)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a: [", b"- a"])
def test_a_file_that_is_no_profile_is_named(folder, text):
    (folder / "mine.yaml").write_bytes(text)
    with pytest.raises(ProfileError, match=r"profiles/mine.yaml"):
        config.load("mine")


def test_a_profile_states_only_what_differs(folder):
    laptop = config.load("laptop")
    profile = mine(folder, {"seed": 7, "teachers": {"dinov2": {"cache": None}}, "permutation": None})
    assert profile.seed == 7
    assert profile.world == laptop.world
    assert profile.data.benchmarks == laptop.data.benchmarks.replace("laptop", "mine")
    assert (profile.teachers["dinov2"].cache, profile.permutation) == (None, None)
    assert laptop.teachers["dinov2"].cache == "float16"
    assert mine(folder, {"seed": None}).seed == 0  # null where there is no none: as if it were not given


def test_smoke_has_every_kind_of_stage_that_laptop_has():
    smoke, laptop = (pipeline.stages(config.load(name)) for name in ("smoke", "laptop"))
    assert {kind for kind in laptop if laptop[kind]} == {kind for kind in smoke if smoke[kind]}


def test_a_run_is_measured_where_the_profile_names_it():
    laptop = config.load("laptop")
    assert set(laptop.measurements("baseline")) == {"cknna", "attention", "permutation", "probes"}
    assert set(laptop.measurements("siglip2-viral")) == {"permutation"}
    assert laptop.measurements("layer-8") == {}
    measured = {item["run"] for item in pipeline.stages(laptop)["measure"].values()}
    assert measured == {run for run in laptop.runs if laptop.measurements(run)}
    assert "layer-8" not in measured


def test_a_missing_stage_lists_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError, match="no params.yaml: select a profile first"):
        config.active()
    (tmp_path / "params.yaml").write_text("profile: smoke\nstages: {}")
    with pytest.raises(ProfileError, match=r"params.yaml: missing key runs"):
        config.active()
    pipeline.select("smoke")
    assert pipeline.stage("measure", "smoke-viral-s0")[1]["run"] == "viral"
    with pytest.raises(ProfileError, match="no stage2 stage 'x'; there are: smoke-baseline-s0"):
        pipeline.stage("stage2", "x")


# Stages in dvc.yaml: what they depend on

# What decides where and how a stage runs, and not what it writes.
AROUND = {
    "viral_core/distributed.py",
    "viral_core/measure",
    "workbook/scale/launch.py",
    "workbook/config.py",
    "workbook/sections.py",
    "workbook/models.py",
    "workbook/paths.py",
}
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
NOTEBOOKS = sorted(file.stem for file in (ROOT / "notebooks").glob("*.py"))
assert len(NOTEBOOKS) >= 19


def imports(tree) -> set[str]:
    """Files of this project that code imports."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {file.relative_to(ROOT).as_posix() for name in imported if (file := _file(name))}


def _file(imported: str):
    """The module's file, or its package's folder, that holds an imported name; None outside of this project."""
    place = ROOT.joinpath(*imported.split("."))
    for path in (place, place.parent):
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file() and path not in (ROOT / "viral_core", ROOT / "workbook"):
            return path
    return None


def missing(files: set[str], stage: dict) -> set[str]:
    deps = stage["do"]["deps"]
    return {file for file in files - AROUND if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)}


@pytest.mark.parametrize("kind", pipeline.KINDS)
def test_stages_depend_on_the_modules_they_import(kind):
    tree = ast.parse((ROOT / "workbook/stages.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    used, seen = [kind], set()
    while used:
        name = used.pop()
        seen.add(name)
        if name in functions:
            used += {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)} - seen
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            node.names = [alias for alias in node.names if alias.name in seen]
    tree.body = [node for node in tree.body if isinstance(node, ast.ImportFrom) or node is functions[kind]]
    assert missing(imports(tree), DVC[kind]) == set()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_is_a_stage_that_depends_on_what_it_imports(name):
    tree = ast.parse((ROOT / f"notebooks/{name}.py").read_text(encoding="utf-8"))
    stage = DVC[name]
    assert f"notebooks/{name}.py" in stage["do"]["deps"]
    assert stage["do"]["cmd"] == f"python -m workbook notebook {name} ${{item}}"
    assert missing(imports(tree), stage) == set()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_stage_of_a_notebook_depends_on_the_seeds_of_the_runs_it_reads(name):
    """So that what is taken out of a profile leaves its tables."""
    stage = DVC[name]["do"]
    runs = set(re.findall(r"(?:\${item}/(?:evaluate|measure)/|weights\.)([\w-]+)", " ".join(stage["deps"])))
    whole = "runs/${item}/evaluate" in stage["deps"]
    assert set(stage.get("params", [])) == ({"trained"} if whole else {f"seeds.{run}" for run in runs})


# Runs


def facts(run: config.System, blocks: int) -> dict:
    """What a run is, in the words of PAPER."""
    align, residual = run.align, run.residual
    found = {
        "language": run.language,
        "vision": run.vision,
        "teacher": align and align.teacher,
        "layers": align and list(align.blocks(blocks)),
        "objective": align and align.objective,
        "residual": residual and (residual.source, residual.depth),
    }
    if align and align.target != "teacher":
        found["target"] = align.target
    if run.reconstruct:
        found["reconstruct"] = run.reconstruct.depth
    if run.architecture != "llava":
        found["architecture"] = run.architecture
    return found


@pytest.mark.parametrize("number", paper.TABLES)
def test_every_row_of_the_paper_has_the_run_it_describes(paper_profile, number):
    cells = paper.table(number).drop_duplicates(["row", "run"])
    runs = dict(zip(cells["row"], cells["run"], strict=True))
    systems = {row: paper_profile.systems[run] for row, run in runs.items()}
    assert {row: facts(system, paper_profile.blocks(runs[row])) for row, system in systems.items()} == PAPER[number]
    for align in filter(None, (system.align for system in systems.values())):
        assert (align.weight, align.train_head, align.shuffled) == (0.5, True, False)


@pytest.mark.parametrize("name", ["laptop", "paper"])
def test_every_cell_is_trained_and_asked(name):
    profile = config.load(name)
    whole = {run for run, system in profile.systems.items() if not system.images}
    assert set(profile.runs) == {run for run in whole if profile.systems[run].teacher in (None, *profile.teachers)}
    assert {file for files in benchmarks.PAPER.values() for file in files} <= set(profile.evaluation.benchmarks)


def test_controls_differ_from_viral_in_what_they_say(paper_profile):
    viral = paper_profile.systems["viral"].align
    for name, changes in CONTROLS.items():
        align = paper_profile.systems[name].align
        different = {key for key in viral.__dataclass_fields__ if getattr(align, key) != getattr(viral, key)}
        assert {key: getattr(align, key) for key in different} == changes


def test_seeds_of_the_headline_runs():
    gpu, paper_runs = (config.load(name).runs for name in ("gpu", "paper"))
    assert all(len(paper_runs[run]) >= 3 for run in ("baseline", "viral"))
    layers = [f"layer-{n}" for n in (4, 8, 12, 20, 24, 28, 32)]
    assert set(gpu) >= {"baseline", "viral", *layers}
    assert all(len(seeds) == 3 for seeds in gpu.values())


@pytest.mark.parametrize("blocks", [32, 8])
def test_depths_are_the_papers_layers(paper_profile, blocks):
    for n in (4, 8, 12, 20, 24, 28, 32):
        assert paper_profile.systems[f"layer-{n}"].align.blocks(blocks) == (n * blocks // 32,)


TEACHER = {"teacher": "dinov2"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"align": {"techer": "dinov2"}}, r"runs.yaml: mine: align: unknown key techer; valid keys: target, teacher"),
        ({"align": {}}, r"runs.yaml: mine: align: .*names its `teacher`"),
        ({"align": {"target": "pixels"}}, r"target 'pixels'; there are: teacher, encoder, projector"),
        ({"align": TEACHER | {"objective": "mse"}}, r"objective 'mse'; there are: cosine, relation"),
        ({"align": TEACHER | {"depth": 0}}, r"mine: align: depth 0.* is not in \(0, 1\]"),
        ({"align": TEACHER | {"depth": 16}}, r"depth 16.* is not in \(0, 1\]"),
        ({"align": TEACHER | {"weight": 0}}, r"weight 0.* must be above 0"),
        ({"align": TEACHER | {"weight": "much"}}, r"mine: align.weight: .*number, found 'much'"),
        ({"align": TEACHER | {"train_head": 1}}, r"mine: align.train_head: .*boolean, found 1"),
        ({"align": TEACHER | {"span": 4}}, r"run mine of mine: span 4 around block 4 leaves the 8 blocks"),
        ({"align": TEACHER | {"depth": 1.0, "span": 1}}, r"span 1 around block 8 leaves the 8 blocks"),
        ({"align": TEACHER | {"weight": float("nan")}}, r"mine: align: weight is nan: give a finite number"),
        (
            {"align": TEACHER | {"layers": [3], "span": 1}},
            r"mine of mine: align.layers stand in place of depth and",
        ),
        ({"align": TEACHER | {"dim": 768}}, r"run mine of mine: its teacher says the features' size"),
        ({"images": 10_000_000}, r"run mine of mine: 10000000 images, of \d+ \(world.conversations\)"),
        ({"align": TEACHER | {"layers": [9]}}, r"layers \[9\] do not exist"),
        ({"align": TEACHER | {"shared_head": True}}, r"shared_head needs several layers"),
        ({"align": TEACHER | {"target": "encoder"}}, r"teacher need\(s\) target teacher, not encoder"),
        ({"align": {"target": "encoder", "shuffled": True}}, r"shuffled need\(s\) target teacher"),
        ({"align": {"target": "projector", "teacher_state": "as_released"}}, r"teacher_state need\(s\) target teacher"),
        ({"align": {"teacher": "clip", "teacher_state": "as_released"}}, r"leaves the teacher clip intact"),
        ({"align": {"teacher": "dino"}}, r"run mine of mine: no teacher 'dino'; there are: dinov2, "),
        ({"align": {"teacher": "vae"}}, r"run mine of mine: no teacher .vae.; there are: clip, dinov2"),
        ({"align": "dinov2"}, r"mine: align: .*found 'dinov2'"),
        ({"train_head": False}, r"mine: unknown key train_head; valid keys: .*language, vision, images, align"),
        ({"residual": {"source": "pixels"}}, r"source 'pixels'; there are: projector, encoder"),
        ({"residual": {"source": "encoder", "depth": 1.5}}, r"depth 1.5 is not in \(0, 1\]"),
        ({"reconstruct": {"depth": 0.0}}, r"depth 0.0 is not in \(0, 1\]"),
        ({"reconstruct": {"vae": "dinov2"}}, r"no vae 'dinov2'; there are: vae"),
        ({"reconstruct": {"layer": 9}}, r"run mine of mine: layer 9 does not exist: this language model has 8 blocks"),
        ({"residual": {"layer": 0}}, r"run mine of mine: layer 0 does not exist: this language model has 8 blocks"),
        ({"architecture": "blip"}, r"mine: architecture: .*'llava' or 'llava_next', found 'blip'"),
        ({"architecture": "llava_next", "residual": {"source": "encoder"}}, r"take whole images"),
        ({"language": "llama"}, r"no language 'llama'; there are: vicuna-7b, vicuna-13b"),
        ({"vision": "eva"}, r"no vision 'eva'; there are: clip, siglip2"),
        ({"extends": "virall"}, r"mine.extends: no run 'virall'; there are: viral, "),
        ({"extends": "mine"}, r"mine extends mine"),
    ],
)
def test_what_is_wrong_in_an_entry_is_named(folder, entry, message):
    with pytest.raises(ProfileError, match=message):
        mine(folder, {}, entry)


def test_an_own_run_takes_one_entry(folder):
    align = {"teacher": "depth_anything", "depth": 0.75, "weight": 1.0, "objective": "relation"}
    entry = {"extends": "viral", "vision": "siglip2", "align": align}
    profile = mine(folder, {"runs": {"mine": [0, 3]}}, entry)
    index = pipeline.stages(profile)
    assert list(index["stage2"]) == ["mine-mine-s0", "mine-mine-s3"]
    system = profile.systems["mine"]
    assert system.align.blocks(profile.blocks("mine")) == (6,)  # 0.75 of 8 blocks
    assert (system.align.objective, system.align.weight, system.align.hidden) == ("relation", 1.0, 192)
    # only what it needs is made
    assert list(index["stage1"]) == ["mine-vicuna-7b-siglip2"]
    encoder = ["mine-encoder-siglip2-captions", "mine-encoder-siglip2-conversations"]
    assert set(index["cache"]) == {"mine-depth_anything-siglip2", *encoder}
    item = index["stage2"]["mine-mine-s3"]
    assert item["targets"] == index["cache"]["mine-depth_anything-siglip2"]["out"]
    assert (item["seed"], item["vision"]) == (3, "siglip2")


def test_an_own_run_overrules_what_the_profile_gives_all(folder):
    profile = mine(folder, {"align": {"init_std": 0.5}}, {"extends": "viral", "align": {"hidden": 64}})
    assert (profile.systems["mine"].align.hidden, profile.systems["mine"].align.init_std) == (64, 0.5)
    assert (profile.systems["viral"].align.hidden, profile.systems["viral"].align.init_std) == (192, 0.5)


def test_an_encoder_may_be_cached_for_both_stages(folder):
    index = pipeline.stages(mine(folder, {"visions": {"clip": {"cache": "float16"}}, "runs": {"viral": [0]}}))
    assert set(index["cache"]) == {
        "mine-dinov2-clip",
        "mine-encoder-clip-captions",
        "mine-encoder-clip-conversations",
    }
    caches = index["cache"]
    assert index["stage1"]["mine-vicuna-7b-clip"]["features"] == caches["mine-encoder-clip-captions"]["out"]
    assert index["stage2"]["mine-viral-s0"]["features"] == caches["mine-encoder-clip-conversations"]["out"]


def test_null_takes_a_key_away(paper_profile):
    assert paper_profile.systems["align-encoder"].align == Align(target="encoder")
    assert paper_profile.systems["lambda-1"].align == Align(teacher="dinov2", weight=1.0)


def test_runs_of_the_learning_curve_keep_checkpoints(folder):
    curve = {"runs": ["viral"], "fractions": [0.25, 0.5], "benchmarks": ["cv_bench"]}
    profile = mine(folder, {"runs": {"viral": [0], "relation": [0]}, "learning_curve": curve})
    assert profile.recipe("viral", 3).checkpoints == (0.25, 0.5)
    assert profile.recipe("relation", 0).checkpoints == ()
    assert profile.recipe("viral", 3).seed == 3


def test_a_run_may_take_a_part_of_the_mix():
    samples = [SimpleNamespace(images=names) for names in ((), ("a",), ("b",), (), ("c",), (), ("d",), ())]
    images, texts = samples[1:3] + [samples[4], samples[6]], [samples[0], samples[3], samples[5], samples[7]]
    assert stages.first_images(samples, 2) == images[:2] + texts[:2]
    assert stages.first_images(samples, 4) == images + texts
    with pytest.raises(ValueError, match="has 4 images, not 5"):
        stages.first_images(samples, 5)
    again = SimpleNamespace(images=("a",))  # a second conversation about an image
    assert stages.first_images([*samples, again], 2) == [*images[:2], again, *texts[:2]]


def test_changing_one_run_changes_what_its_stages_read_only(folder):
    before = pipeline.parameters(config.load("laptop"))
    runs = yaml.safe_load((folder / "runs.yaml").read_text())
    runs["relation"]["align"]["weight"] = 0.25
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs))
    after = pipeline.parameters(config.load("laptop"))
    assert {run for run in before["runs"] if before["runs"][run] != after["runs"][run]} == {"relation"}
    assert {key: value for key, value in before.items() if key != "runs"} == {
        key: value for key, value in after.items() if key != "runs"
    }
