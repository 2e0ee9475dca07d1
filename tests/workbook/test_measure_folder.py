"""Measurements of a model folder that was not trained here, and what cannot be measured."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from viral_core.llava import assemble
from workbook.measure_model import measure


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """(LLaVA, LLaVA-NeXT, images): folders as transformers writes them."""
    root = tmp_path_factory.mktemp("models")
    for name, grids in (("llava", None), ("next", [(1, 2), (2, 1)])):
        torch.manual_seed(0)
        model, processor = assemble(tiny / "clip", tiny / "llama", tile_grids=grids)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (30, 28 + i, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    (root / "images" / "notes.txt").write_text("no image")
    return root / "llava", root / "next", root / "images"


def test_each_measurement_writes_its_table(folders, tmp_path):
    llava, _, images = folders
    options = {"template": "vicuna_v1", "question": "What is it?"}
    cknna = pd.read_csv(measure("cknna", str(llava), images, tmp_path, k=2, **options))
    layers = cknna["layer"].nunique()
    assert set(cknna["image"]) == {"0.png", "1.png", "2.png"}
    attention = pd.read_csv(measure("attention", str(llava), images, tmp_path, **options))
    assert attention["layer"].nunique() == layers - 1
    permutation = pd.read_csv(measure("permutation", str(llava), images, tmp_path, **options))
    assert permutation["variant"].nunique() == 6
    assert not permutation.query("variant == 'original'")["changed"].any()
    pca = pd.read_csv(measure("pca", str(llava), images, tmp_path, **options))
    assert pca.groupby(["image", "layer"]).ngroups == 3 * layers
    assert pca[["red", "green", "blue"]].stack().between(0, 1).all()
    with Image.open(tmp_path / "0.png.png") as strip:
        assert strip.width == layers * strip.height


def test_tiles_are_measured_one_by_one(folders, tmp_path):
    _, tiled, images = folders
    table = pd.read_csv(measure("cknna", str(tiled), images, tmp_path, k=2, template="vicuna_v1"))
    assert table["tile"].nunique() == 3
    permutation = pd.read_csv(measure("permutation", str(tiled), images, tmp_path, template="vicuna_v1"))
    assert len(permutation) == 3 * 6
    pca = pd.read_csv(measure("pca", str(tiled), images, tmp_path, template="vicuna_v1"))
    assert set(pca.groupby(["image", "layer"]).size()) == {(pca["row"].max() + 1) ** 2}  # of the whole image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantity": "beauty"}, "no measurement 'beauty'; there are: cknna"),
        ({"template": "chat"}, "no template 'chat'; there are: vicuna_v1"),
        ({"template": None}, "no chat template: name one of"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_model_is_loaded(folders, tmp_path, change, message):
    llava, _, images = folders
    options = {"quantity": "cknna", "template": "vicuna_v1"} | change
    with pytest.raises(ValueError, match=message):
        measure(options["quantity"], str(llava), images, tmp_path, template=options["template"])


def test_a_folder_without_images_and_another_kind_of_model_are_refused(folders, tmp_path):
    llava, _, images = folders
    with pytest.raises(ValueError, match="holds no image"):
        measure("cknna", str(llava), tmp_path, tmp_path, template="vicuna_v1")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # all that is read of it
    with pytest.raises(ValueError, match="is a llama; llava and llava_next can be measured"):
        measure("cknna", str(tmp_path), images, tmp_path, template="vicuna_v1")


def test_a_model_without_all_weights_a_run_and_no_folder_are_refused(folders, tmp_path):
    llava, _, images = folders
    shutil.copytree(llava, tmp_path / "part")
    weights = load_file(tmp_path / "part/model.safetensors")
    lacking = next(name for name in weights if "projector" in name)
    save_file({name: value for name, value in weights.items() if name != lacking}, tmp_path / "part/model.safetensors")
    with pytest.raises(ValueError, match="part lacks 1 weights of .*, such as model.multi_modal_projector"):
        measure("cknna", str(tmp_path / "part"), images, tmp_path, template="vicuna_v1")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is a run: write it as a model first, python -m workbook export"):
        measure("cknna", str(tmp_path), images, tmp_path, template="vicuna_v1")
    with pytest.raises(FileNotFoundError, match="no folder .*/nowhere"):
        measure("cknna", str(tmp_path / "nowhere"), images, tmp_path, template="vicuna_v1")
