"""The manifest: every image once, all faults together, nothing opened twice."""

import json

import numpy as np
import pytest
from PIL import Image

from workbook.scale import manifest
from workbook.scale.manifest import write_manifest

FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")


@pytest.fixture
def mix(tmp_path):
    """A small mix in the format of LLaVA's 665K: its folders, OCR-VQA's suffixes, a text-only sample."""
    rng, entries = np.random.default_rng(0), []
    for i, name in enumerate(FOLDERS):
        file = tmp_path / "images" / name / f"{i}.jpg"
        file.parent.mkdir(parents=True)
        picture = Image.fromarray(rng.integers(0, 255, (40 + i, 30, 3), dtype=np.uint8))
        picture.save(file.with_suffix(".gif") if "ocr" in name else file)
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
        entries.append({"id": f"s{i}", "image": f"{name}/{i}.jpg", "conversations": turns})
    entries.append({"id": "text", "conversations": [{**turns[0], "value": "Hi"}, turns[1]]})
    entries.append({**entries[0], "id": "again"})
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    return tmp_path


def check(folder, drop_faulty=False):
    out = folder / "manifest" / "conversations.json"
    return write_manifest(folder / "mix.json", folder / "images", out, drop_faulty)


def test_what_is_recorded(mix):
    found = check(mix)
    assert (found["samples"], found["samples_with_images"], found["images"]) == (8, 7, 6)
    assert found["under_another_suffix"] == 1
    lines = (mix / "manifest/conversations.images.jsonl").read_text().splitlines()
    images = {line["name"]: line for line in map(json.loads, lines)}
    assert images["ocr_vqa/images/2.jpg"]["file"] == "ocr_vqa/images/2.gif"
    assert (images["coco/train2017/0.jpg"]["width"], images["coco/train2017/0.jpg"]["height"]) == (30, 40)
    assert found["bytes"] == sum(file.stat().st_size for file in (mix / "images").rglob("*.*"))


def test_a_second_start_opens_only_what_changed(mix, monkeypatch):
    first = check(mix)
    before = (mix / "manifest/conversations.json").stat().st_mtime_ns
    opened = []
    look = manifest._look
    monkeypatch.setattr(manifest, "_look", lambda file: (opened.append(file.name), look(file))[1])
    assert check(mix) == first
    assert opened == []
    assert (mix / "manifest/conversations.json").stat().st_mtime_ns == before
    Image.new("RGB", (9, 9)).save(mix / "images/gqa/images/1.jpg")
    second = check(mix)
    assert opened == ["1.jpg"]
    assert second["images_sha256"] != first["images_sha256"]


def test_an_interrupted_pass_goes_on(mix, monkeypatch):
    look, opened = manifest._look, []

    def stop(file):
        opened.append(file)
        if len(opened) > 3:
            raise KeyboardInterrupt
        return look(file)

    monkeypatch.setattr(manifest, "_look", stop)
    monkeypatch.setattr(manifest, "WORKERS", 1)
    with pytest.raises(KeyboardInterrupt):
        check(mix)
    details = mix / "manifest/conversations.images.jsonl"
    kept = len(details.read_text().splitlines())
    assert 0 < kept < 6
    details.write_text(details.read_text() + '{"name": "coco/tr')  # as a killed process leaves it
    again = []
    monkeypatch.setattr(manifest, "_look", lambda file: (again.append(file), look(file))[1])
    assert check(mix)["images"] == 6
    assert len(again) == 6 - kept


def test_all_faults_in_one_error(mix, monkeypatch):
    """A missing image, a truncated one, one that is no image, and an empty answer: listed together, with the remedy."""
    (mix / "images/coco/train2017/0.jpg").unlink()
    cut = mix / "images/gqa/images/1.jpg"
    cut.write_bytes(cut.read_bytes()[:-400])
    (mix / "images/vg/VG_100K/4.jpg").write_text("<html>Not found</html>")
    entries = json.loads((mix / "mix.json").read_text())
    entries[6]["conversations"][1]["value"] = " "
    (mix / "mix.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="5 faults in .*mix.json; correct or remove these entries") as error:
        check(mix)
    for sample, what in (("s0", "not found"), ("again", "not found"), ("s1", "truncated"), ("s4", "cannot identify"),
                         ("text", "an empty answer")):  # fmt: skip
        assert any(f"sample {sample}:" in line and what in line for line in str(error.value).splitlines())
    assert not (mix / "manifest/conversations.json").exists()
    assert len((mix / "manifest/conversations.faults.jsonl").read_text().splitlines()) == 5

    kept = (mix / "mix.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            check(mix, drop_faulty=True)
    assert (mix / "mix.json").read_bytes() == kept
    assert check(mix, drop_faulty=True)["dropped"] == 5
    assert [entry["id"] for entry in json.loads((mix / "mix.json").read_text())] == ["s2", "s3", "s5"]
    assert len(json.loads((mix / "mix.json.original").read_text())) == 8
    assert check(mix, drop_faulty=True)["samples"] == 3
    assert check(mix)["dropped"] == 0
    assert not (mix / "manifest/conversations.faults.jsonl").exists()


def test_a_file_without_a_good_entry_is_left_alone(mix):
    """Such as all images in another folder, or a mapping where a list is meant."""
    entries = json.loads((mix / "mix.json").read_text())
    for content in ([{**entry, "image": "none.jpg"} for entry in entries[:6]], {"data": entries}):
        (mix / "mix.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="not one entry is good") as error:
            check(mix, drop_faulty=True)
        assert not isinstance(error.value, manifest.FaultyEntriesError)
        assert json.loads((mix / "mix.json").read_text()) == content
        assert not (mix / "mix.json.original").exists()


def test_the_json_file_is_part_of_it(mix):
    first = check(mix)
    entries = json.loads((mix / "mix.json").read_text())
    entries[0]["conversations"][1]["value"] = "A cat."
    (mix / "mix.json").write_text(json.dumps(entries))
    second = check(mix)
    assert second["conversations_sha256"] != first["conversations_sha256"]
    assert second["images_sha256"] == first["images_sha256"]
