"""Conversations as they are read, tokenised, cut, batched and ordered."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from viral_core.conversations import Sample, check_conversations, load_conversations
from viral_core.data import IGNORE, Collator, ConversationDataset, Encoding, GroupedSampler, count_image_tokens, encode
from viral_core.images import CLIP_COLOR, find_image, pad_to_square
from viral_core.llava import assemble, load_processor
from viral_core.teachers import load_encoder
from viral_core.templates import TEMPLATES, prompt
from viral_core.tiles import view_of

MODEL_OF = {"vicuna_v1": "llama", "qwen": "qwen", "plain": "llama"}


@pytest.fixture(scope="module")
def processors(tiny):
    return {name: load_processor(tiny / "clip", tiny / name) for name in ("llama", "qwen")}


def encoded(sample, processor, template, max_length=1024):
    [image_tokens] = count_image_tokens([sample], view_of(processor))
    return encode(sample, processor, template, max_length, image_tokens)


def tensors(sample, processor, template):
    return encoded(sample, processor, template).tensors(processor.image_token_id)


def turns(*texts):
    return tuple({"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts))


def test_pad_to_square_centres_on_mean_colour():
    padded = np.array(pad_to_square(Image.new("RGB", (10, 4), (255, 0, 0))))
    assert padded.shape == (10, 10, 3)
    assert (padded[3:7] == (255, 0, 0)).all()
    assert (padded[[0, 1, 2, 7, 8, 9]] == CLIP_COLOR).all()
    square = Image.new("RGB", (3, 3))
    assert pad_to_square(square) is square


def test_load_conversations(samples):
    assert [sample.id for sample in samples] == [f"s{i}" for i in range(12)]
    assert samples[4].images == ("4.png", "5.png")
    assert samples[7].images == ()
    assert [image.size for image in samples[0].open_images()] == [(30, 24)]


def test_conversations_are_read_as_llava_reads_them(tmp_path, caplog):
    """What LLaVA accepts beyond turns that alternate; what it leaves out is counted."""
    greeting, (question, answer) = {"from": "gpt", "value": "Hello"}, turns("Hi", "A.")
    marker, (mention, reply) = {"from": "human", "value": "<image>\nHi"}, turns("What does <image> mean?", "<image>: a")
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    entries = {
        "begins": ([greeting, question, answer], [question, answer], "a first turn from gpt, which is left out"),
        "ends": (
            [question, answer, question],
            [question, answer],
            "a last question without an answer, which is left out",
        ),
        "mentions": ([mention, reply], [mention, reply], "<image> and no image: read as text"),
    }
    faulty = {"last": ([question, answer, marker], "0.png"), "no answer": ([question], None)}
    written = [{"id": name, "conversations": said} for name, (said, *_) in entries.items()]
    written += [{"id": name, "conversations": said, "image": image} for name, (said, image) in faulty.items()]
    (tmp_path / "mix.json").write_text(json.dumps(written))
    read = check_conversations(tmp_path / "mix.json", tmp_path)
    assert {sample.id: list(sample.turns) for sample in read.samples} == {
        k: kept for k, (_, kept, _) in entries.items()
    }
    assert read.adapted == {what: 1 for *_, what in entries.values()}
    assert [read.faults[i].split(":")[0] for i in (3, 4)] == ["sample last", "sample no answer"]
    (tmp_path / "mix.json").write_text(json.dumps(written[:3]))
    assert len(load_conversations(tmp_path / "mix.json", tmp_path)) == 3
    assert "1 conversations with a first turn from gpt" in caplog.text


def test_an_image_of_another_suffix_is_found_by_its_stem(tmp_path):
    """As in OCR-VQA: the json says .jpg, the file is a .gif; a .jpg that exists is preferred."""
    (tmp_path / "ocr_vqa" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / "ocr_vqa/images/B01.gif")
    entry = {"id": "b", "image": "ocr_vqa/images/B01.jpg", "conversations": turns("<image>\nWho wrote it?", "A.")}
    (tmp_path / "mix.json").write_text(json.dumps([entry]))
    (sample,) = load_conversations(tmp_path / "mix.json", tmp_path)
    assert sample.images == ("ocr_vqa/images/B01.jpg",)
    assert find_image(tmp_path, sample.images[0]).suffix == ".gif"
    assert np.array(sample.open_images()[0])[4, 4].tolist() == [200, 0, 0]
    Image.new("RGB", (8, 6)).save(tmp_path / "ocr_vqa/images/B01.jpg")
    assert find_image(tmp_path, sample.images[0]).suffix == ".jpg"
    assert find_image(tmp_path, "ocr_vqa/images/B02.jpg") is None


def test_load_errors_name_the_file(tmp_path, conversations):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        load_conversations(tmp_path / "absent.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="no image folder"):
        load_conversations(conversations[0], tmp_path / "absent")
    (tmp_path / "image.png").write_text("no image")
    with pytest.raises(ValueError, match=r"sample x: cannot read image .*image.png"):
        Sample("x", (), ("image.png",), tmp_path).open_images()


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_supervise_exactly_answers_and_stop(name, processors, samples):
    processor, template = processors[MODEL_OF[name]], TEMPLATES[name]
    tokenizer = processor.tokenizer
    for sample in samples:
        ids, labels = tensors(sample, processor, template)
        supervised = labels != IGNORE
        assert torch.equal(labels[supervised], ids[supervised])
        answers = [turn["value"].strip() for turn in sample.turns if turn["from"] == "gpt"]
        space = "" if name == "plain" else " "
        expected = "".join(f"{space}{answer}{template.stop}" for answer in answers)
        assert tokenizer.decode(labels[supervised]) == expected
        assert supervised[-1]  # the last stop
        assert (ids == processor.image_token_id).sum() == 4 * len(sample.images)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_tokens_are_the_trained_ones(name, processors, samples):
    processor, template = processors[MODEL_OF[name]], TEMPLATES[name]
    sample = samples[0]
    ids, labels = tensors(sample, processor, template)
    text = prompt(template, sample.turns[0]["value"]).replace("<image>", "<image>" * view_of(processor).tokens())
    first = int((labels != IGNORE).nonzero()[0])
    assert processor.tokenizer(text)["input_ids"] == ids[:first].tolist()


def test_what_is_too_long_is_cut_but_images_stay_whole(processor, samples):
    sample, template = samples[4], TEMPLATES["vicuna_v1"]  # two images
    ids, labels = tensors(sample, processor, template)
    places = (ids == processor.image_token_id).nonzero().squeeze(1)
    first_answer = int((labels != IGNORE).nonzero()[0])
    assert len(sample.images) == 2
    for length in range(1, len(ids) + 1):
        encoding = encoded(sample, processor, template, length)
        cut_ids, cut_labels = encoding.tensors(processor.image_token_id)
        whole = [i for i in range(2) if places[4 * i + 3] < length]
        fitting = min([length, *(int(places[4 * i]) for i in range(2) if i not in whole)])
        assert torch.equal(cut_ids, ids[:fitting])
        assert torch.equal(cut_labels, labels[:fitting])
        assert encoding.image_tokens == (4,) * len(whole)
        assert encoding.cut is (fitting < len(ids))
        assert bool((cut_labels != IGNORE).any()) is (fitting > first_answer)


def test_cut_conversations_are_counted_and_their_images_left_out(processor, samples):
    template = TEMPLATES["vicuna_v1"]
    ids, labels = tensors(samples[4], processor, template)
    places = (ids == processor.image_token_id).nonzero().squeeze(1)
    data = ConversationDataset([samples[4], samples[7]], processor, template, int(places[5]))
    assert data.cut["images"] == 1
    assert min(data.cut.values()) > 0
    batch = Collator(processor)([data[0]])
    assert len(batch["pixel_values"]) == len(batch["image_tokens"]) == 1
    with pytest.raises(ValueError, match="no sample has a supervised token within max_length 3"):
        ConversationDataset(samples, processor, template, 3)


@pytest.mark.parametrize("name", ["vicuna_v1", "qwen"])
def test_special_strings_in_a_text_stay_text(name, processors):
    processor, template = processors[MODEL_OF[name]], TEMPLATES[name]
    tokenizer = processor.tokenizer
    for special in ("</s>", "<|im_end|>", "<pad>", "<unk>", "<image>"):
        said = f"Write {special}old{special} new."
        sample = Sample("s", turns(f"What is {special}?", said), (), None)
        ids, labels = tensors(sample, processor, template)
        assert not (ids == processor.image_token_id).any()
        supervised = labels[labels != IGNORE]
        stop = tokenizer.convert_tokens_to_ids(template.stop)
        assert (supervised == stop).sum() == (ids == stop).sum() == 1
        assert supervised[-1] == stop
        assert tokenizer.decode(supervised) == f" {said}{template.stop}"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"<image>|[^\s<]+", "sample s0, near .*: the tokenizer drops the end"),  # no white space
        (r"<image>|[^<]+", "sample s0, near .*: a token crosses the border of an answer"),
        (r"[^\s<>]+|\n", "sample s0: 0 image tokens for 1 images"),
    ],
)
def test_a_tokenizer_that_does_not_suit_the_template_is_refused(processor, samples, pattern, message):
    """The template `plain`: an image, an answer and a line's end."""

    def tokenizer(text, **_):
        spans = [match.span() for match in re.finditer(pattern, text)]
        ids = [processor.image_token_id if text[slice(*span)] == "<image>" else 0 for span in spans]
        return {"input_ids": ids, "offset_mapping": spans}

    tokenizer.added_tokens_decoder = {}
    own = {name: getattr(processor, name) for name in ("image_processor", "patch_size", "image_token_id")}
    with pytest.raises(ValueError, match=message):
        encode(samples[0], SimpleNamespace(tokenizer=tokenizer, **own), TEMPLATES["plain"], 512, (4,))


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_image_token_count_is_the_processors(vision, tiny):
    llava, processor = assemble(tiny / vision, tiny / "llama")
    ids = processor(text="<image>", images=Image.new("RGB", (28, 28)), return_tensors="pt")["input_ids"]
    assert (ids == processor.image_token_id).sum() == view_of(processor).tokens() == llava.config.image_seq_length == 4


def test_collator_keeps_reading_order(processor, samples):
    data = ConversationDataset(samples, processor, TEMPLATES["vicuna_v1"], 512)
    features = {f"{i}.png": torch.full((4, 2), i) for i in range(12)}
    collate = Collator(processor, lambda keys: torch.stack([features[key] for key in keys]), pictures=True)
    batch = collate([data[i] for i in (7, 4, 0)])
    assert batch["image_tokens"] == [4, 4, 4]
    assert batch["teacher_features"][:, 0, 0].tolist() == [4, 5, 0]
    assert len(batch["pictures"]) == 3
    single = processor.image_processor(batch["pictures"][1], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"][1:2], single)
    lengths = [len(data[i]["input_ids"]) for i in (7, 4, 0)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"][0, lengths[0] :] == IGNORE).all()

    text = collate([data[7], data[9]])
    assert text["image_tokens"] == []
    assert not {"pixel_values", "teacher_features", "pictures"} & text.keys()


def _encodings(images, texts):
    lengths = [(5, (4,))] * images + [(2 + n, ()) for n in range(texts)]
    return [Encoding(np.zeros(n, np.int32), np.ones(n, bool), tokens, False) for n, tokens in lengths]


def test_sampler_groups_modalities_and_sees_everybody():
    encodings = _encodings(21, 14)
    sampler = GroupedSampler(encodings, 4, steps=9, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == 36  # ceil(35 / 4) batches
    batches = [order[i : i + 4] for i in range(0, 36, 4)]
    assert set(order) == set(range(35))
    assert Counter(Counter(order).values()) == {1: 34, 2: 1}
    mixed = [batch for batch in batches if len({bool(encodings[i].image_tokens) for i in batch}) == 2]
    assert len(mixed) <= 2
    lengths = [[sampler.lengths[i] for i in batch] for batch in batches]
    assert all(row == sorted(row, reverse=True) for row in lengths)
    assert lengths[0][0] == max(sampler.lengths)


def test_vicunas_kind_of_tokenizer(tiny, samples, tmp_path):
    """A repository with SentencePiece's tokenizer.model alone, as Vicuna's: labels are the answers and the stop."""
    template = TEMPLATES["vicuna_v1"]
    shutil.copytree(tiny / "llama", tmp_path / "vicuna", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    text = [prompt(template, turn["value"]) for sample in samples for turn in sample.turns]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(tmp_path / "vicuna" / "tokenizer"), vocab_size=330,
        model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "add_bos_token": True}  # fmt: skip
    (tmp_path / "vicuna" / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = load_processor(tiny / "clip", tmp_path / "vicuna")
    for sample in samples:
        ids, labels = tensors(sample, processor, template)
        supervised = ids[labels != IGNORE]
        said = [turn["value"] for turn in sample.turns if turn["from"] == "gpt"]
        assert "".join(processor.tokenizer.decode(supervised).split()) == "".join("</s>".join([*said, ""]).split())
        assert int((supervised == processor.tokenizer.eos_token_id).sum()) == len(said)


def test_sampler_order_depends_on_seed_and_goes_on_over_epochs():
    encodings = _encodings(16, 0)
    one, two = (list(GroupedSampler(encodings, 4, steps=n, seed=0)) for n in (4, 10))
    assert two[:16] == one
    assert len(two) == 40
    assert sorted(two[16:32]) == list(range(16))
    assert two[:16] != two[16:32]
    assert list(GroupedSampler(encodings, 4, steps=4, seed=1)) != one


@pytest.mark.parametrize(("vision", "color"), [("clip", (122, 116, 104)), ("siglip", (127, 127, 127))])
def test_images_are_padded_with_the_encoders_own_mean_colour(tiny, vision, color):
    """So that the padding is next to 0 after its normalisation; a teacher sees the same square."""
    processor = load_processor(tiny / vision, tiny / "llama")
    view, wide = view_of(processor), Image.new("RGB", (28, 14), (255, 0, 0))
    assert view.prepare(wide).getpixel((0, 0)) == color
    assert view.pictures(wide)[0].tobytes() == view.prepare(wide).tobytes()
    assert load_encoder(tiny / vision).color == color
    pixels = processor.image_processor(view.prepare(wide), return_tensors="pt")["pixel_values"]
    assert pixels[0, :, 0].abs().max() < 0.02
