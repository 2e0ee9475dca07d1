"""The registry: every cell of the paper has its run, entries are checked, and one's own run takes one entry."""

import pytest
import yaml

from workbook import pipeline, registry
from workbook import profile as profiles
from workbook.schema import ProfileError

# What the paper's tables and figures show: for each row, curve or panel what the model behind it is.
LLAVA = dict(language="vicuna-7b", vision="clip", teacher=None, layers=None, objective=None, residual=None)
VIRAL = LLAVA | dict(teacher="dinov2", layers=[16], objective="cosine")
QWEN = dict(language="qwen-7b")
LARGE = dict(language="vicuna-13b")
SIGLIP = dict(vision="siglip2")
PAPER = {
    "Table 1": {
        "Vicuna-1.5-7B, CLIP, baseline": LLAVA,
        "Vicuna-1.5-7B, CLIP, VIRAL": VIRAL,
        "Vicuna-1.5-7B, SigLIPv2, baseline": LLAVA | SIGLIP,
        "Vicuna-1.5-7B, SigLIPv2, VIRAL": VIRAL | SIGLIP,
        "Qwen2.5-7B, CLIP, baseline": LLAVA | QWEN,
        "Qwen2.5-7B, CLIP, VIRAL": VIRAL | QWEN | dict(layers=[14]),
        "Vicuna-1.5-13B, CLIP, baseline": LLAVA | LARGE,
        "Vicuna-1.5-13B, CLIP, VIRAL": VIRAL | LARGE | dict(layers=[20]),
    },
    "Table 2": {
        "Baseline": LLAVA,
        "DINOv2": VIRAL,
        "CLIP": VIRAL | dict(teacher="clip"),
        "SAM": VIRAL | dict(teacher="sam"),
        "DAv2": VIRAL | dict(teacher="depth_anything"),
        "RADIO": VIRAL | dict(teacher="radio"),
        **{f"layer {layer}": VIRAL | dict(layers=[layer]) for layer in (4, 8, 12, 16, 20, 24, 28, 32)},
    },
    "Table 3": {
        "CLIP, baseline": LLAVA,
        "CLIP, VIRAL": VIRAL,
        "SigLIPv2, baseline": LLAVA | SIGLIP,
        "SigLIPv2, VIRAL": VIRAL | SIGLIP,
    },
    "Table 4": {
        "Baseline": LLAVA,
        "(b)": LLAVA | dict(residual=("projector", 0.5)),
        "(c)": LLAVA | dict(layers=[16], objective="cosine", target="encoder"),
        "(d)": LLAVA | dict(residual=("encoder", 0.5)),
        "(e)": LLAVA | dict(layers=[16], objective="cosine", target="projector"),
    },
    "Table 5": {
        "Baseline": LLAVA,
        "layer 16": VIRAL,
        "layers 15-17": VIRAL | dict(layers=[15, 16, 17]),
        "layers 14-18": VIRAL | dict(layers=[14, 15, 16, 17, 18]),
        "Cos. Sim.": VIRAL,
        "Relation": VIRAL | dict(objective="relation"),
    },
    "Table 6": {
        "Baseline": LLAVA,
        "ROSS (Default)": LLAVA | dict(reconstruct=1.0),
        "ROSS (Middle)": LLAVA | dict(reconstruct=0.5),
        "VIRAL": VIRAL,
    },
    "Fig. 1": {
        "CLIP, baseline": LLAVA,
        "CLIP, VIRAL": VIRAL,
        "SigLIPv2, baseline": LLAVA | SIGLIP,
        "SigLIPv2, VIRAL": VIRAL | SIGLIP,
    },
    "Fig. 2": {
        "(a)": LLAVA,
        "(b)": LLAVA | dict(residual=("projector", 0.5)),
        "(c)": LLAVA | dict(layers=[16], objective="cosine", target="encoder"),
    },
    "Fig. 3": {"VIRAL": VIRAL},
    "Fig. 4": {"baseline": LLAVA, "VIRAL": VIRAL},
    "Fig. 5": {"baseline": LLAVA, "VIRAL": VIRAL},
    "Fig. 6": {
        "CLIP-Vicuna-1.5-7B, baseline": LLAVA,
        "CLIP-Vicuna-1.5-7B, VIRAL": VIRAL,
        "CLIP-Qwen2.5-7B, baseline": LLAVA | QWEN,
        "CLIP-Qwen2.5-7B, VIRAL": VIRAL | QWEN | dict(layers=[14]),
        "CLIP-Vicuna-1.5-13B, baseline": LLAVA | LARGE,
        "CLIP-Vicuna-1.5-13B, VIRAL": VIRAL | LARGE | dict(layers=[20]),
    },
    "Fig. 7": {"baseline": LLAVA, "VIRAL": VIRAL},
    "Fig. 8": {
        "(a)": LLAVA,
        "(b)": LLAVA | dict(residual=("projector", 0.5)),
        "(c)": LLAVA | dict(layers=[16], objective="cosine", target="encoder"),
        "(d)": LLAVA | dict(residual=("encoder", 0.5)),
        "(e)": LLAVA | dict(layers=[16], objective="cosine", target="projector"),
    },
    "Fig. 9": {"LLaVA-NeXT": LLAVA | dict(architecture="llava_next")},
    "Fig. 10": {"(a)": LLAVA, "(b)": VIRAL},
    "Fig. 11": {
        "LLaVA-1.5-7B": LLAVA,
        "w/ CLIP": VIRAL | dict(teacher="clip"),
        "w/ DINOv2": VIRAL,
        "w/ SAM": VIRAL | dict(teacher="sam"),
        "w/ DAv2": VIRAL | dict(teacher="depth_anything"),
        "w/ RADIO": VIRAL | dict(teacher="radio"),
    },
    "Fig. 12": {"baseline": LLAVA, "VIRAL": VIRAL},
}
COLUMNS = {
    "Table 1": ["cv_bench", "mmvp", "whats_up_one", "whats_up_two", "pope_random", "pope_popular", "mmstar", "mme"],
    "Table 2": ["cv_bench", "mmvp", "whats_up_one", "whats_up_two", "pope_random", "pope_popular", "mme"],
    "Table 3": ["cv_bench"],
    "Table 4": ["pope_random", "pope_popular", "cv_bench", "mmvp"],
    "Table 5": ["cv_bench", "mmvp", "whats_up_one", "whats_up_two", "pope_random", "pope_popular", "mme"],
    "Table 6": ["cv_bench", "mmvp", "whats_up_one", "whats_up_two", "pope_random", "pope_popular", "mmstar", "mme"],
}
CONTROLS = {
    "as-released": dict(teacher_state="as_released", train_head=False),
    "shuffled-teacher": dict(shuffled=True),
    "lambda-0_1": dict(weight=0.1),
    "lambda-0_25": dict(weight=0.25),
    "lambda-1": dict(weight=1.0),
}
HEADLINE = ("baseline", "viral", "residual-post", "align-encoder", "residual-pre", "align-projector")


@pytest.fixture(scope="module")
def paper():
    return profiles.load("paper")


def facts(run: registry.Run, blocks: int) -> dict:
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


@pytest.mark.parametrize("place", PAPER)
def test_every_row_of_the_paper_has_the_run_it_describes(paper, place):
    found = registry.rows(place, paper.registry)
    assert set(found) == set(PAPER[place])
    for row, name in found.items():
        run = paper.registry[name]
        assert facts(run, paper.languages[run.language].depth) == PAPER[place][row], f"{place}, {row}: {name}"
        assert run.align is None or (run.align.weight, run.align.train_head, run.align.shuffled) == (0.5, True, False)


def test_the_registry_claims_nothing_else():
    claimed = {place for run in profiles.load("laptop").registry.values() for place in run.uses}
    assert claimed == set(PAPER)


@pytest.mark.parametrize("name", ["laptop", "paper"])
def test_every_cell_is_trained_and_asked(name):
    profile = profiles.load(name)
    assert set(profile.runs) == set(profile.registry)
    stages = pipeline.stages(profile)
    for place, columns in COLUMNS.items():
        for run in registry.rows(place, profile.registry).values():
            asked = stages["evaluate"][f"{name}-{run}-s0"]["benchmarks"]
            assert set(columns) <= set(asked), f"{place}: {run} is not asked {set(columns) - set(asked)}"
    for run in registry.rows("Fig. 2", profile.registry).values():
        assert f"{name}-{run}-s0" in stages["cknna"]


def test_controls_differ_from_viral_in_what_they_say(paper):
    viral = paper.registry["viral"].align
    for name, changes in CONTROLS.items():
        align = paper.registry[name].align
        different = {key for key in viral.__dataclass_fields__ if getattr(align, key) != getattr(viral, key)}
        assert {key: getattr(align, key) for key in different} == changes


def test_seeds_of_the_headline_runs():
    laptop, gpu, paper = (profiles.load(name).runs for name in ("laptop", "gpu", "paper"))
    assert all(len(laptop[run]) >= 3 for run in HEADLINE)
    assert all(len(paper[run]) >= 3 for run in ("baseline", "viral"))
    layers = [f"layer-{n}" for n in (4, 8, 12, 20, 24, 28, 32)]
    assert set(gpu) >= {"baseline", "viral", *layers}
    assert all(len(seeds) == 3 for seeds in gpu.values())


@pytest.mark.parametrize(
    ("blocks", "near", "wide"),
    [
        (32, [15, 16, 17], [14, 15, 16, 17, 18]),
        (40, [19, 20, 21], [18, 19, 20, 21, 22]),
        (28, [13, 14, 15], [12, 13, 14, 15, 16]),
        (8, [3, 4, 5], [2, 3, 4, 5, 6]),
        (10, [4, 5, 6], [3, 4, 5, 6, 7]),
        (7, [3, 4, 5], [2, 3, 4, 5, 6]),
    ],
)
def test_layers_of_a_span(blocks, near, wide):
    for span, layers in ((1, near), (2, wide)):
        assert list(registry.Align(teacher="dinov2", span=span).blocks(blocks)) == layers


@pytest.mark.parametrize("blocks", [32, 8])
def test_depths_are_the_papers_layers(paper, blocks):
    for n in (4, 8, 12, 20, 24, 28, 32):
        assert paper.registry[f"layer-{n}"].align.blocks(blocks) == (n * blocks // 32,)


TEACHER = {"teacher": "dinov2"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"align": {"techer": "dinov2"}}, r"mine.align: unknown key techer; valid keys: target, teacher, depth"),
        ({"align": {}}, r"names its `teacher`"),
        ({"align": {"target": "pixels"}}, r"no alignment target 'pixels'; there are: teacher, encoder, projector"),
        ({"align": TEACHER | {"objective": "mse"}}, r"no alignment objective 'mse'; there are: cosine, relation"),
        ({"align": TEACHER | {"depth": 0}}, r"mine.align: depth 0.0 is not in \(0, 1\]"),
        ({"align": TEACHER | {"depth": 16}}, r"depth 16.0 is not in \(0, 1\]"),
        ({"align": TEACHER | {"weight": 0}}, r"weight 0.0 must be above 0"),
        ({"align": TEACHER | {"weight": "much"}}, r"mine.align.weight: expected float, found 'much'"),
        ({"align": TEACHER | {"train_head": 1}}, r"mine.align.train_head: expected bool, found 1"),
        ({"align": TEACHER | {"span": 4}}, r"run mine of mine: span 4 around block 4 leaves the 8 blocks"),
        ({"align": TEACHER | {"depth": 1.0, "span": 1}}, r"span 1 around block 8 leaves the 8 blocks"),
        ({"align": TEACHER | {"shared_head": True}}, r"shared_head needs several layers"),
        ({"align": TEACHER | {"target": "encoder"}}, r"teacher need\(s\) target teacher, not encoder"),
        ({"align": {"target": "encoder", "shuffled": True}}, r"shuffled need\(s\) target teacher"),
        ({"align": {"target": "projector", "teacher_state": "as_released"}}, r"teacher_state need\(s\) target teacher"),
        ({"align": {"teacher": "clip", "teacher_state": "as_released"}}, r"leaves the teacher clip intact"),
        ({"align": {"teacher": "dino"}}, r"run mine of mine: no teacher 'dino'; there are: clip, dinov2"),
        ({"align": {"teacher": "vae"}}, r"run mine of mine: no teacher .vae.; there are: clip, dinov2"),
        ({"train_head": False}, r"mine: unknown key train_head; valid keys: .*language, vision, align"),
        ({"residual": {"source": "pixels"}}, r"no residual source 'pixels'; there are: projector, encoder"),
        ({"residual": {"source": "encoder", "depth": 1.5}}, r"depth 1.5 is not in \(0, 1\]"),
        ({"reconstruct": {"depth": 0.0}}, r"depth 0.0 is not in \(0, 1\]"),
        ({"language": "llama"}, r"no language 'llama'; there are: vicuna-7b, vicuna-13b"),
        ({"vision": "eva"}, r"no vision 'eva'; there are: clip, siglip2"),
        ({"extends": "virall"}, r"mine.extends: no run 'virall'; there are: baseline, viral"),
        ({"extends": "mine"}, r"mine extends mine"),
        ({"uses": {"Table 1": ["Vicuna-1.5-7B, CLIP, VIRAL"]}}, r"is claimed by viral and by mine"),
    ],
)
def test_what_is_wrong_in_an_entry_is_named(folder, entry, message):
    add(folder, entry)
    with pytest.raises(ProfileError, match=message):
        profiles.load("mine")


@pytest.mark.parametrize(
    ("seeds", "message"), [([], "different seeds"), ([0, 0], "different seeds"), ([0.5], "different seeds")]
)
def test_seeds_are_different_numbers(folder, seeds, message):
    add(folder, {}, seeds)
    with pytest.raises(ProfileError, match=message):
        profiles.load("mine")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles with a copy of the real ones."""
    for file in profiles.PROFILES.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return tmp_path


def add(folder, entry: dict, seeds=(0,)) -> None:
    """One entry `mine` in the registry, and a profile of the laptop's size that trains it alone."""
    registry_file = folder / "runs.yaml"
    registry_file.write_text(registry_file.read_text() + yaml.safe_dump({"mine": entry}))
    mine = {"extends": "laptop", "runs": {"mine": list(seeds)}, "notebooks": []}
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))


def test_an_own_run_takes_one_entry(folder):
    align = {"teacher": "depth_anything", "depth": 0.75, "weight": 1.0, "objective": "relation"}
    add(folder, {"extends": "viral", "vision": "siglip2", "align": align}, seeds=(0, 3))
    stages = pipeline.stages(profiles.load("mine"))
    for kind in ("stage2", "evaluate", "cknna"):
        assert list(stages[kind]) == ["mine-mine-s0", "mine-mine-s3"]
    entry = stages["stage2"]["mine-mine-s3"]
    assert entry["align"]["layers"] == (6,)  # 0.75 of 8 blocks
    assert (entry["align"]["objective"], entry["align"]["weight"], entry["seed"]) == ("relation", 1.0, 3)
    assert entry["vision"]["path"].endswith("siglip2")
    # only what it needs is made: one language model and what it grows from, encoder, ...
    assert list(stages["stage1"]) == ["mine-vicuna-7b-siglip2"]
    assert list(stages["cache"]) == ["mine-depth_anything-siglip2"]
    assert entry["targets"] == stages["cache"]["mine-depth_anything-siglip2"]["out"]
    assert [list(stages[kind]) for kind in ("language", "grow", "vision", "teacher", "distil")] == [
        ["mine-vicuna-7b"], [], ["mine-siglip2"], ["mine-depth_anything"], []
    ]  # fmt: skip


def test_a_distilled_teacher_brings_its_own_teachers(folder):
    add(folder, {"align": {"teacher": "radio"}})
    stages = pipeline.stages(profiles.load("mine"))
    assert list(stages["distil"]) == ["mine-radio"]
    assert list(stages["teacher"]) == ["mine-dinov2", "mine-sam"]


def test_null_takes_a_key_away_and_uses_are_not_inherited(paper):
    assert paper.registry["align-encoder"].align.teacher is None
    assert "Table 1" not in paper.registry["lambda-1"].uses
    assert paper.registry["lambda-1"].align == registry.Align(teacher="dinov2", weight=1.0)


def test_every_run_keeps_the_checkpoints_of_the_learning_curves(folder):
    curve = {"runs": ["viral"], "fractions": [0.25, 0.5], "benchmarks": ["cv_bench"]}
    mine = {"extends": "laptop", "runs": {"viral": [0], "relation": [0]}, "learning_curve": curve}
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    stages = pipeline.stages(profiles.load("mine"))["stage2"]
    assert stages["mine-viral-s0"]["recipe"]["checkpoints"] == [0.25, 0.5]
    assert stages["mine-relation-s0"]["recipe"]["checkpoints"] == [0.25, 0.5]


def test_an_unknown_table_lists_the_known_ones(paper):
    with pytest.raises(ProfileError, match="no table or figure 'Table 7'; there are: .*Table 6"):
        registry.rows("Table 7", paper.registry)
