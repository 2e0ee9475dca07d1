"""Cached features: equal to online ones, resumable, and errors for what is damaged, missing or unknown."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from viral_core import cache as cache_module
from viral_core.cache import FeatureCache, pack, unpack, write_cache
from viral_core.images import open_rgb
from viral_core.teachers import load_teacher, randomise_linears


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    BitImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(dinov2):
    return load_teacher("dinov2", dinov2, grid=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (28, 20 + i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return {f"train/{i}.png": folder / f"{i}.png" for i in range(10)}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_cached_equals_online(dtype, teacher, images, tmp_path):
    write_cache(teacher, images, tmp_path, dtype, shard_size=4, batch_size=4)
    cache = FeatureCache(tmp_path)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 3
    assert (len(cache), cache.tokens, cache.dim, cache.dtype) == (10, 16, 12, dtype)
    assert cache.teacher == teacher.identity()
    names = sorted(images)
    online = teacher([Image.open(images[name]) for name in names[:4]])  # the batch of the first shard
    assert torch.equal(cache(names[:4]), unpack(pack(online, dtype)))
    bound = {
        "float32": torch.zeros(1),
        "float16": online.abs() * 2**-11 + 2**-24,
        "int8": online.abs().amax(-1, keepdim=True) / 254,
    }[dtype]
    assert ((cache(names[:4]) - online).abs() <= bound * 1.001).all()
    single = teacher([Image.open(images[names[9]])])[0]
    torch.testing.assert_close(cache[names[9]], single, atol=0.03, rtol=0)
    assert cache([]).shape == (0, 16, 12)
    assert torch.equal(pickle.loads(pickle.dumps(cache))[names[3]], cache[names[3]])


def test_resumes_behind_finished_shards(teacher, images, tmp_path, monkeypatch):
    write_cache(teacher, images, tmp_path, shard_size=4)
    first = (tmp_path / "shard-00000.safetensors").stat()
    whole = FeatureCache(tmp_path)(sorted(images))
    (tmp_path / "index.json").unlink()
    (tmp_path / "shard-00001.safetensors").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match="no finished feature cache"):
        FeatureCache(tmp_path)
    seen = []
    monkeypatch.setattr(cache_module, "open_rgb", lambda file: seen.append(f"train/{file.name}") or open_rgb(file))
    write_cache(teacher, images, tmp_path, shard_size=4)
    names = sorted(images)
    assert seen == [names[0], names[8], *names[4:8]]  # of intact shards the first one alone
    again = (tmp_path / "shard-00000.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert torch.equal(FeatureCache(tmp_path)(sorted(images)), whole)


def test_shards_of_another_teacher_or_of_other_data_are_set_aside(dinov2, teacher, images, tmp_path):
    folder = tmp_path / "cache"
    write_cache(teacher, images, folder, shard_size=4)
    before = FeatureCache(folder)["train/0.png"]
    bytes_before = {file.name: file.read_bytes() for file in folder.glob("shard-*")}
    other = load_teacher("dinov2", dinov2, grid=4)
    randomise_linears(other, seed=0)
    with pytest.warns(UserWarning, match=r"3 shards of other settings: they lie in .*cache\.20.*other-settings now"):
        write_cache(other, dict(list(images.items())[:3]), folder, shard_size=4)
    cache = FeatureCache(folder)
    assert len(cache) == 3
    assert not torch.equal(cache["train/0.png"], before)
    assert cache.teacher["randomised"] == 0
    assert sorted(file.name for file in folder.iterdir()) == ["index.json", "shard-00000.safetensors"]
    (aside,) = tmp_path.glob("cache.*.other-settings")
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == bytes_before


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_shard_of_images_that_were_replaced_is_made_again(teacher, images, tmp_path, dtype):
    own = {name: Path(shutil.copy2(file, tmp_path)) for name, file in images.items()}
    folder = tmp_path / "cache"
    write_cache(teacher, own, folder, dtype, shard_size=4)
    before = {file.name: file.read_bytes() for file in folder.glob("shard-*")}
    for file in own.values():
        file.touch()  # newer than the shards, but no other
    write_cache(teacher, own, folder, dtype, shard_size=4)
    assert not list(tmp_path.glob("cache.*"))
    Image.new("RGB", (20, 30), "red").save(own["train/5.png"])
    with pytest.warns(UserWarning, match="1 shards of other settings"):
        write_cache(teacher, own, folder, dtype, shard_size=4)
    after = {file.name: file.read_bytes() for file in folder.glob("shard-*")}
    assert {name for name in before if before[name] != after[name]} == {"shard-00001.safetensors"}
    (aside,) = tmp_path.glob("cache.*.other-settings")
    (kept,) = aside.iterdir()
    assert kept.read_bytes() == before[kept.name]
    now = teacher([Image.open(own["train/5.png"])])[0]
    torch.testing.assert_close(FeatureCache(folder)["train/5.png"], now, atol=0.03, rtol=0)


def test_shards_of_a_loader_that_was_corrected_are_made_again(teacher, images, tmp_path):
    def first(model, pixels):
        return model(pixels, output_hidden_states=True).hidden_states[0][:, 1:]

    folder, names = tmp_path / "cache", sorted(images)
    write_cache(teacher, images, folder, shard_size=4)
    corrected = dataclasses.replace(teacher, extract=first)
    with pytest.warns(UserWarning, match="3 shards of other settings"):
        write_cache(corrected, images, folder, shard_size=4)
    now = corrected([Image.open(images[name]) for name in names])
    torch.testing.assert_close(FeatureCache(folder)(names), now, atol=0.03, rtol=0)


def test_shards_that_other_data_share_stay(teacher, images, tmp_path):
    folder = tmp_path / "cache"
    write_cache(teacher, images, folder, shard_size=4)
    with pytest.warns(UserWarning, match="1 shards of other settings"):
        write_cache(teacher, dict(list(images.items())[:9]), folder, shard_size=4)
    (aside,) = tmp_path.glob("cache.*.other-settings")
    assert [file.name for file in aside.iterdir()] == ["shard-00002.safetensors"]


def test_damage_is_one_clear_error(teacher, images, tmp_path):
    write_cache(teacher, images, tmp_path, shard_size=4)
    file = tmp_path / "shard-00001.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    cache = FeatureCache(tmp_path)
    assert cache["train/4.png"].shape == (16, 12)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing or was changed .*write the cache again"):
        cache["train/7.png"]
    file.write_bytes(intact[:100])
    with pytest.raises(ValueError, match="missing or was changed"):
        FeatureCache(tmp_path)["train/4.png"]
    file.unlink()
    with pytest.raises(ValueError, match="missing or was changed"):
        FeatureCache(tmp_path)["train/4.png"]
    with pytest.raises(KeyError, match="'val/0.png' is not in the feature cache"):
        cache["val/0.png"]


@pytest.mark.parametrize(
    ("dtype", "before", "after"),
    [("float16", b'"features"', b'"geatures"'), ("float16", b"F16", b"I16"), ("int8", b"I8", b"U8"),
     ("int8", b"F32", b"I32"), ("int8", b'"scale"', b'"scald"')],
)  # fmt: skip
def test_a_header_that_was_changed_is_seen_and_written_again(teacher, images, tmp_path, dtype, before, after):
    write_cache(teacher, images, tmp_path, dtype)
    file = tmp_path / "shard-00000.safetensors"
    intact, names = file.read_bytes(), sorted(images)
    assert before in intact
    file.write_bytes(intact.replace(before, after, 1))
    with pytest.raises(ValueError, match=r"shard-00000.safetensors is missing or was changed"):
        FeatureCache(tmp_path)(names)
    write_cache(teacher, images, tmp_path, dtype)
    assert file.read_bytes() == intact


def test_checksums_that_cannot_be_read_are_written_again(teacher, images, tmp_path):
    write_cache(teacher, images, tmp_path)
    file = tmp_path / "shard-00000.safetensors"
    intact = file.read_bytes()
    place = intact.index(b'"checksums')
    file.write_bytes(intact[:place] + intact[place:].replace(b", ", b": ", 1))
    write_cache(teacher, images, tmp_path)
    assert file.read_bytes() == intact


def test_bad_input_before_work(teacher, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="1 of 11 images .*lost.png"):
        write_cache(teacher, {**images, "lost.png": tmp_path / "lost.png"}, tmp_path / "cache")
    with pytest.raises(ValueError, match="no cache dtype 'int4'; there are: float32, float16, int8"):
        write_cache(teacher, images, tmp_path / "cache", "int4")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="cannot read image .*text.png"):
        write_cache(teacher, {"text.png": tmp_path / "text.png"}, tmp_path / "cache")
    with pytest.raises(ValueError, match="not finite in float16"):
        pack(torch.tensor([[1e6]]), "float16")


def test_one_wrong_byte_of_the_index_is_seen(teacher, images, tmp_path):
    write_cache(teacher, images, tmp_path)
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace("train/3.png", "train/2.png", 1))
    with pytest.raises(ValueError, match=r"index.json is damaged .*write the cache again, intact shards stay"):
        FeatureCache(tmp_path)


def test_zero_tokens_stay_zero():
    assert not unpack(pack(torch.zeros(2, 3), "int8")).any()
