"""The embedded world: disjoint scenes, one right answer to everything asked, LLaVA's formats, the text lessons."""

import json
import re

import numpy as np
import pytest
import torch

from viral_core.data import IGNORE, Sample, encode, load_conversations
from viral_core.templates import IMAGE_MARKER, TEMPLATES, stop_token_id
from workbook.world import pool as pools
from workbook.world import questions, scenes, write_benchmarks
from workbook.world import render as drawing
from workbook.world import write as world

ASKERS = list(questions.ASKERS.values())


def drawn(n: int, seed: int = 0, test: bool = False) -> list[scenes.Scene]:
    return list(world.scenes(n, seed, test))


def test_training_and_test_scenes_share_no_content():
    train = {scene.key() for scene in drawn(2000, 1)}
    test = {scene.key() for scene in drawn(500, 2, test=True)}
    assert not train & test
    assert len(test) > 400


def test_scenes_stay_within_their_limits_and_use_every_category():
    seen = drawn(800)
    assert {name for scene in seen for name in scene.counts()} == set(scenes.BY_NAME)
    assert {len(scene.objects) for scene in seen} == set(range(1, scenes.MAX_OBJECTS + 1))
    for scene in seen:
        cells = [o.cell for o in scene.objects]
        assert cells == sorted(set(cells))
        assert max(scene.counts().values()) <= scenes.MAX_COUNT
        assert all((o.facing is None) == (scenes.BY_NAME[o.category].native is None) for o in scene.objects)


def test_at_least_24_categories():
    assert len(scenes.CATEGORIES) >= 24


@pytest.mark.parametrize("name", questions.ASKERS)
def test_answers_are_balanced(name):
    rng, given = np.random.default_rng(0), []
    for scene in drawn(1500):
        if qa := questions.ASKERS[name](scene, rng):
            given.append(qa.answer)
    shares = np.unique(given, return_counts=True)[1] / len(given)
    assert len(given) > 150
    assert shares.max() < 1.45 / len(shares)


def test_counts_and_relations_are_those_of_the_scene():
    """Read the questions back and answer them from the objects' coordinates alone."""
    rng = np.random.default_rng(0)
    checked = {"count": 0, "relation": 0}
    for scene in drawn(300):
        qa = questions.cv_bench_count(scene, rng)
        plural = re.match(r"How many (.+) are in the image\?", qa.stem)[1]
        name = next(c.name for c in scenes.CATEGORIES if c.plural == plural)
        assert int(qa.options["ABCDEF".index(qa.answer)]) == sum(o.category == name for o in scene.objects)
        checked["count"] += 1
        if qa := questions.cv_bench_relation(scene, rng):
            a, b = re.search(r"positions of the (.+) and the (.+) in the image", qa.stem).groups()
            (a,), (b,) = ([o for o in scene.objects if o.category == n] for n in (a, b))
            right = {"left": a.col < b.col, "right": a.col > b.col, "above": a.row < b.row, "below": a.row > b.row}
            assert right[qa.options["AB".index(qa.answer)]]
            assert not right[qa.options["BA".index(qa.answer)]]
            checked["relation"] += 1
    assert min(checked.values()) > 80


def test_written_data_load_through_the_real_loaders(tmp_path):
    world.write_captions(tmp_path / "pretrain", 4, seed=0)
    world.write_conversations(tmp_path / "instruct", 5, text_only=2, most=3, seed=0)
    captions = load_conversations(tmp_path / "pretrain/blip_laion_cc_sbu_558k.json", tmp_path / "pretrain/images")
    mixed = load_conversations(tmp_path / "instruct/llava_v1_5_mix665k.json", tmp_path / "instruct/images")
    assert len(captions) == 4
    assert [bool(sample.images) for sample in mixed] == [True] * 5 + [False] * 2
    assert captions[0].open_images()[0].size == (96, 96)
    again = tmp_path / "again"
    world.write_conversations(again, 5, text_only=2, most=3, seed=0)
    name = "llava_v1_5_mix665k.json"
    assert json.loads((again / name).read_text()) == json.loads((tmp_path / "instruct" / name).read_text())


@pytest.fixture(scope="module")
def language():
    from workbook.world import language

    return language


@pytest.mark.parametrize("template", ["vicuna_v1", "qwen"])
def test_text_lessons_are_tokenised_as_training_and_evaluation_do(language, template, tiny, tmp_path):
    """The language model must have seen the very tokens that stage 1 and 2 and the benchmarks will show it."""
    from transformers import AutoImageProcessor, AutoTokenizer, LlamaConfig, LlavaProcessor, Qwen2Config

    tokenizer = language.build_tokenizer(bos=template == "vicuna_v1", eos=TEMPLATES[template].stop)
    tokenizer.save_pretrained(tmp_path)
    {"vicuna_v1": LlamaConfig, "qwen": Qwen2Config}[template]().save_pretrained(tmp_path)
    assert tokenizer.eos_token_id == stop_token_id(tokenizer, TEMPLATES[template])
    loaded = AutoTokenizer.from_pretrained(tmp_path)  # its class, and with it the rule that cuts text, is the model's
    images = AutoImageProcessor.from_pretrained(tiny / "clip")
    images.size, images.crop_size = {"shortest_edge": 96}, {"height": 96, "width": 96}
    processor = LlavaProcessor(images, loaded, patch_size=24, num_additional_image_tokens=1,
                               vision_feature_select_strategy="default")  # fmt: skip
    rng = np.random.default_rng(0)
    for scene in drawn(20):
        items = questions.conversation(scene, rng, 4, ASKERS)
        for said, shown in ((world.turns(items, image=True), ("a.jpg",)), (world.in_words(scene, items), ()),
                            (world.captioning(scene), ("a.jpg",))):  # fmt: skip
            expected = encode(Sample("s", tuple(said), shown, None), processor, TEMPLATES[template], 512)
            ids, labels = language.tokenise(tokenizer, language.converse(TEMPLATES[template], said))
            assert torch.equal(ids, expected["input_ids"])
            assert torch.equal(labels, expected["labels"])


def test_every_word_of_the_world_is_one_token(language):
    tokenizer = language.build_tokenizer(bos=True, eos="</s>")
    for scene in drawn(50):
        for words, cell in zip(questions.spelled_out(scene), language.spell_out(tokenizer, scene), strict=True):
            ids = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
            assert ids == [[i] for i in cell.tolist() if i >= 0]
    for text in (" 0", " 5", " A:", "\n(A)", " (b)"):
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1
    assert tokenizer.decode(tokenizer("Grüße, 漢字!", add_special_tokens=False).input_ids) == "Grüße, 漢字!"


def test_lessons_tell_the_truth(language):
    """Facts read back from the text agree with the scene, whether told or chosen from options."""
    rng, checked = np.random.default_rng(0), 0
    for scene in drawn(60):
        pieces = language.lesson(scene, rng, 12, choice=0.4, later=0.3)
        for (ask, _), (told, _) in zip(pieces[::2], pieces[1::2], strict=True):
            words, told = ask.split(), told.strip()
            if words[0] != "number":
                continue
            if "answer" in told:
                letter = told.split()[-1]
                chosen = words[words.index(f"({letter})") + 1]
                assert told == f"{chosen}: the answer is {letter}"
                told = chosen
            name = next(c.name for c in scenes.CATEGORIES if words[1] in (c.name, c.plural))
            assert int(told) == sum(o.category == name for o in scene.objects)
            checked += 1
    assert checked > 100


def test_cells_stand_at_the_image_tokens(language):
    """The spelled-out scene replaces the embeddings of image tokens and no others."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = language.build_tokenizer(bos=True, eos="</s>")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
                                         num_hidden_layers=1, num_attention_heads=2))  # fmt: skip
    scene = drawn(1)[0]
    image = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    pieces = language.converse(TEMPLATES["vicuna_v1"], world.captioning(scene))
    ids, labels = language.tokenise(tokenizer, pieces)
    assert (labels != IGNORE).any()
    cells = language.spell_out(tokenizer, scene)
    got = language.embed(model, image, ids[None], cells[None])[0]
    table = model.get_input_embeddings().weight
    weights = torch.tensor([1.0] + [language.DETAIL] * 3)
    for cell, position in enumerate((ids == image).nonzero().flatten()):
        words = [i for i in cells[cell] if i >= 0]
        torch.testing.assert_close(got[position], sum(w * table[i] for w, i in zip(weights, words, strict=False)))
    torch.testing.assert_close(got[ids != image], table[ids[ids != image]])


def test_a_stand_in_grows_from_another(language, tmp_path):
    """Deeper: the same answers until it is trained.  Shallower: a block falls out, after a third of the rest."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    small = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes)).eval()
    small.save_pretrained(tmp_path)
    deep = LlamaForCausalLM(LlamaConfig(num_hidden_layers=6, **sizes)).eval()
    language.grow_from(deep, tmp_path)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, small(ids).logits)
        flat = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=3, num_key_value_heads=2, **sizes)).eval()
        language.grow_from(flat, tmp_path)
        small.model.layers = torch.nn.ModuleList([small.model.layers[i] for i in (0, 2, 3)])
        small.config.num_hidden_layers = 3
        torch.testing.assert_close(flat(ids).logits, small(ids, use_cache=False).logits)


def test_running_counts_are_asked_after_their_cells(language):
    """The label after a cell's position is the number of its category up to there; all others stay."""
    tokenizer = language.build_tokenizer(bos=True, eos="</s>")
    image, rng = tokenizer.convert_tokens_to_ids(IMAGE_MARKER), np.random.default_rng(0)
    for scene in drawn(20):
        pieces = language.converse(TEMPLATES["vicuna_v1"], world.captioning(scene))
        ids, labels = language.tokenise(tokenizer, pieces)
        got = language.running_counts(tokenizer, scene, ids, labels)
        places = (ids == image).nonzero().flatten().tolist()
        for cell in range(language.CELLS):
            objects = [o for o in scene.objects if o.cell == cell]
            expected = [str(sum(p.category == o.category and p.cell <= cell for p in scene.objects)) for o in objects]
            asked = got[places[cell] + 1]
            assert [tokenizer.decode(asked).strip()] == expected if objects else asked == labels[places[cell] + 1]
        outside = torch.ones(len(ids), dtype=torch.bool)
        outside[[place + 1 for place in places]] = False
        assert torch.equal(got[outside], labels[outside])
        without = world.in_words(scene, questions.conversation(scene, rng, 2, ASKERS))
        ids, labels = language.tokenise(tokenizer, language.converse(TEMPLATES["vicuna_v1"], without))
        assert torch.equal(language.running_counts(tokenizer, scene, ids, labels), labels)


def test_the_loss_over_parts_is_that_of_the_whole_batch(language):
    """Sorted by length, padded part by part, predicted only where supervised: it is still transformers' own loss."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = language.build_tokenizer(bos=True, eos="</s>")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
                                         num_hidden_layers=2, num_attention_heads=2))  # fmt: skip
    image, recipe = tokenizer.convert_tokens_to_ids(IMAGE_MARKER), dict(alone=0.2, captions=0.2, turns=3, items=6)
    lessons = iter(language.Lessons(tokenizer, TEMPLATES["vicuna_v1"], seed=0, batch_size=10, steps=1, **recipe))
    samples = [next(lessons) for _ in range(10)]
    ids, labels, cells = language.collate(samples)
    whole = model(inputs_embeds=language.embed(model, image, ids, cells), labels=labels).loss
    parts = language.collate_by_length(samples)
    assert [len(part) for part, _, _ in parts] == [4, 4, 2]
    assert sum(part.numel() for part, _, _ in parts) < ids.numel()
    losses = [language.supervised_loss(model, language.embed(model, image, a, c), b) for a, b, c in parts]
    torch.testing.assert_close(sum(losses) / (labels[:, 1:] != IGNORE).sum(), whole)


def test_no_test_scene_is_written_to_learn_from(tmp_path, monkeypatch):
    drawn = []
    for module, name in ((drawing, "render"), (pools, "render_full")):
        draw = getattr(module, name)
        monkeypatch.setattr(module, name, lambda scene, *a, draw=draw: (drawn.append(scene), draw(scene, *a))[1])
    monkeypatch.setattr(write_benchmarks, "write_benchmarks", lambda *_: None)  # theirs are test scenes
    world.write_world(tmp_path, 3, captions=30, conversations=30, turns=2, text_only=2, benchmarks={}, pool=60)
    assert len(drawn) >= 120
    assert not any(world.is_test(scene) for scene in drawn)
