"""Bad inputs, each one error that names file, entry and remedy, before long work."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from viral_core.aligned import AlignedModel
from viral_core.checkpoints import load_whole, read_json, read_weights, save_weights, write_json
from viral_core.conversations import check_conversations, load_conversations
from viral_core.files import json_line
from viral_core.images import open_rgb, to_rgb
from viral_core.llava import add_lora, assemble, load_projector
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align
from viral_core.teachers import load_encoder, load_teacher
from viral_core.templates import TEMPLATES
from workbook.logs import read_log

TURNS = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "A."}]
TEXT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "7.png", "d.JPG"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / name)
    return folder


ENTRIES = {
    "a number for an image": ({"image": 12, "conversations": TURNS}, "sample x: image is 12: expected a file name"),
    "true for an image": ({"image": True, "conversations": TURNS}, "sample x: image is True"),
    "null among images": ({"image": ["a.png", None], "conversations": TURNS}, "sample x: image is .'a.png', None."),
    "an empty name": ({"image": "", "conversations": TURNS}, "sample x: image is ''"),
    "a mapping": ({"image": {"path": "a.png"}, "conversations": TURNS}, "sample x: image is {'path'"),
    "300 letters": ({"image": "x" * 300, "conversations": TURNS}, r"sample x: image xxx.*\.\.\. not found"),
    "a name with a zero byte": ({"image": "a\0.png", "conversations": TURNS}, "sample x: image .* not found"),
    "a missing image": ({"image": "b.png", "conversations": TURNS}, "sample x: image b.png not found in"),
    "another folder": ({"image": "../a.png", "conversations": TURNS}, "image ../a.png lies outside of"),
    "an absolute path": ({"image": "/etc/passwd", "conversations": TURNS}, "image /etc/passwd lies outside of"),
    "a list for a sample": ([1], "at position 0: no list of conversations"),
    "null for a sample": (None, "at position 0: no list of conversations"),
    "no conversations": ({"image": "a.png"}, "sample x: no list of conversations"),
    "empty conversations": ({"conversations": []}, "sample x: no list of conversations"),
    "text for conversations": ({"conversations": "Hi"}, "sample x: no list of conversations"),
    "a text for a turn": ({"conversations": ["Hi"]}, "sample x: a turn without a text value"),
    "a turn without value": ({"conversations": [{"from": "human"}]}, "sample x: a turn without a text value"),
    "a number for a value": ({"conversations": [{"from": "human", "value": 3}]}, "a turn without a text value"),
    "half a character": (
        {"conversations": [{"from": "human", "value": "Hi \ud83d"}, TEXT[1]]},
        r"sample x: half a character \(a lone surrogate\) at place 3",
    ),
    "half a character in a name": ({"image": "\ud83d.png", "conversations": TURNS}, "half a character"),
    "another role": ({"conversations": [{"from": "system", "value": "S"}, *TEXT]}, r"human, gpt: \['system', 'human'"),
    "two questions": ({"conversations": [TEXT[0], *TEXT]}, "turns do not alternate human, gpt"),
    "two answers": ({"conversations": [*TEXT, TEXT[1]]}, "turns do not alternate human, gpt"),
    "a question alone": ({"conversations": TEXT[:1]}, "turns do not alternate human, gpt"),
    "an image without marker": ({"image": "a.png", "conversations": TEXT}, "0 <image> markers .* for 1 images"),
    "two markers": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image><image>"}, TEXT[1]]},
        "2 <image> markers in human turns for 1 images",
    ),
    "a marker in an answer": (
        {"image": "a.png", "conversations": [TURNS[0], {"from": "gpt", "value": "<image>"}]},
        "an answer contains <image>",
    ),
    "an empty answer": ({"conversations": [TEXT[0], {"from": "gpt", "value": " "}]}, "an empty answer"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_faulty_sample_is_listed(tmp_path, folder, case):
    entry, message = ENTRIES[case]
    entry = {"id": "x", **entry} if isinstance(entry, dict) else entry
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([entry, {"id": "good", "image": "a.png", "conversations": TURNS}]))
    with pytest.raises(ValueError, match=f"1 faults in .*mix.json; correct or remove these entries:\n.*{message}"):
        load_conversations(path, folder)
    assert [sample.id for sample in check_conversations(path, folder).samples] == ["good"]


def test_faults_are_listed_together(tmp_path, folder):
    """All of them where they are read one by one, and 20 in a message."""
    entries = [{"id": "x", **entry} if isinstance(entry, dict) else entry for entry, _ in ENTRIES.values()]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    assert list(check_conversations(tmp_path / "mix.json", folder).faults) == list(range(len(ENTRIES)))
    listed = r"(\n  .*){20}" + rf"\n  \.\.\. and {len(ENTRIES) - 20} more$"
    with pytest.raises(ValueError, match=rf"^{len(ENTRIES)} faults in .*mix.json; .*{listed}"):
        load_conversations(tmp_path / "mix.json", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mix.json must hold a non-empty json list"),
        (b"[]", "mix.json must hold a non-empty json list"),
        (b"[{", "mix.json is not valid json .*create or download it again"),
        (b"\x1f\x8b123", "mix.json is compressed with gzip: unpack it"),
        (json.dumps([{"id": "caf\xe9"}], ensure_ascii=False).encode("cp1252"), "mix.json is not UTF-8"),
        (b"<html></html>", "mix.json is a web page"),
        (b'{"id": 1}\n{"id', "mix.json, line 2: not json"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, message):
    (tmp_path / "mix.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_conversations(tmp_path / "mix.json", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_read(tmp_path, folder, encoding):
    entry = {"id": "caf\xe9", "conversations": TEXT}
    (tmp_path / "mix.json").write_text(json.dumps([entry], ensure_ascii=False), encoding=encoding)
    assert load_conversations(tmp_path / "mix.json", folder)[0].id == "caf\xe9"


def test_json_lines_are_read(tmp_path, folder):
    entries = [{"id": name, "conversations": TEXT} for name in "ab"]
    (tmp_path / "mix.json").write_text("\n".join(map(json.dumps, entries)))
    assert [sample.id for sample in load_conversations(tmp_path / "mix.json", folder)] == ["a", "b"]


def test_a_file_stands_for_one_name(tmp_path, folder):
    entries = [{"id": name, "image": name, "conversations": TURNS} for name in ("7.png", "7.jpg", "d.jpg")]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    read = check_conversations(tmp_path / "mix.json", folder)
    assert [sample.id for sample in read.samples] == ["7.png", "d.jpg"]
    assert read.faults == {1: f"sample 7.jpg: image 7.jpg not found in {folder}"}


def test_faults_can_be_printed_anywhere(tmp_path, folder):
    (tmp_path / "mix.json").write_text(json.dumps([{"id": "\ud83d", "conversations": []}]))
    with pytest.raises(ValueError, match=r"sample \\ud83d: no list") as error:
        load_conversations(tmp_path / "mix.json", folder)
    str(error.value).encode()


def test_deep_pixels_are_scaled_or_refused(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    for kind in ("png", "tiff"):
        Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / f"deep.{kind}")
        assert abs(np.array(open_rgb(tmp_path / f"deep.{kind}"))[0, 130, 0].astype(int) - 130) <= 1
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float.tiff .*pixels of mode F have no known range: save the image with 8"):
        open_rgb(tmp_path / "float.tiff")
    assert np.array(to_rgb(Image.new("LA", (1, 1), (130, 255))))[0, 0].tolist() == [130] * 3


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n123"])
def test_a_damaged_image_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read image .*broken.png .*: restore it"):
        open_rgb(tmp_path / "broken.png")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    llava = add_lora(assemble(tiny / "clip", tiny / "llama")[0], r=2, alpha=4)
    folder = tmp_path_factory.mktemp("trained")
    save_run(folder, AlignedModel(llava, Align(layers=(2,), hidden=16, dim=6)), TEMPLATES["vicuna_v1"], seed=0)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run."""
    return shutil.copytree(trained, tmp_path / "run")


PROJECTOR, HEADS, LORA = "projector.safetensors", "heads.safetensors", "adapter/adapter_model.safetensors"
CONFIG, RUN = "adapter/adapter_config.json", "run.json"


@pytest.mark.parametrize("name", [PROJECTOR, HEADS, LORA, CONFIG, RUN])
@pytest.mark.parametrize("damage", ["a bit", "cut"])
def test_damage_to_a_run_is_named(run, name, damage):
    data = (run / name).read_bytes()
    flipped = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    (run / name).write_bytes(flipped if damage == "a bit" else data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        load_run(run)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (CONFIG, b'"lora_alpha": 4', b'"lora_alpha": 5'),
        (RUN, b'"seed": 0', b'"seed": 1'),
        (LORA, b"0.self_attn.q_proj.lora_A", b"0.self_attn.q_prok.lora_A"),
        (PROJECTOR, b"linear_1.bias", b"linear_1.bibs"),
        (HEADS, b"heads.2.0.bias", b"heads.2.0.bibs"),
        (PROJECTOR, b"vision_sha256", b"vision_sha257"),  # in the metadata
        (RUN, b"vision_sha256", b"vision_sha257"),
        *((name, b"F32", b"I32") for name in (PROJECTOR, HEADS, LORA)),
    ],
)
def test_a_name_or_a_setting_that_was_changed_in_a_run_is_named(run, name, before, after):
    data = (run / name).read_bytes()
    assert before in data
    (run / name).write_bytes(data.replace(before, after, 1))
    with pytest.raises(ValueError, match=rf"{name} (is damaged|does not fit)"):
        load_run(run)


def test_a_run_whose_models_are_gone_says_which(run):
    saved = read_json(run / "run.json", "")
    write_json(run / "run.json", {**saved, "base": {**saved["base"], "vision": "runs/x/models/clip"}})
    with pytest.raises(FileNotFoundError, match="no folder runs/x/models/clip: .*say where it lies now"):
        load_run(run)


def test_a_run_loads_from_another_folder(tiny, tmp_path, monkeypatch):
    """Paths of its models are relative to where it was trained."""
    (tmp_path / "models").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    aligned = AlignedModel(assemble("models/clip", "models/llama")[0])
    save_run("runs/a", aligned, TEMPLATES["vicuna_v1"], seed=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_run(tmp_path / "runs/a").base.vision == "models/clip"


def test_missing_folders_and_files(tiny, tmp_path):
    nowhere = tmp_path / "no/where"
    for load in (
        lambda: assemble(nowhere, tiny / "llama"),
        lambda: assemble(tiny / "clip", nowhere),
        lambda: load_teacher("dinov2", nowhere, 2),
        lambda: load_teacher("vae", nowhere, 2),
        lambda: load_encoder(nowhere),
    ):
        with pytest.raises(FileNotFoundError, match="no folder .*no/where: make or fetch that model"):
            load()
    with pytest.raises(FileNotFoundError, match="no weights at .*none.safetensors: run the stage"):
        load_projector(assemble(tiny / "clip", tiny / "llama")[0], tmp_path / "none.safetensors")


def test_own_files_appear_whole(tmp_path, monkeypatch):
    save_weights({"a": torch.ones(3)}, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr("viral_core.checkpoints.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        save_weights({"a": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert torch.equal(read_weights(tmp_path / "w.safetensors")[0]["a"], torch.ones(3))


def test_a_normaliser_of_features_is_not_left_out(tmp_path):
    """As some RADIO checkpoints have: the class of transformers would ignore it, and give other features."""

    class Model:
        @classmethod
        def from_pretrained(cls, name, **_):
            return cls(), {"missing_keys": [], "unexpected_keys": ["radio_model.feature_normalizer.mean"]}

    with pytest.raises(ValueError, match=r"radio normalises its features \(radio_model.feature_normalizer.mean\)"):
        load_whole(Model, "radio")


def test_the_same_weights_are_the_same_bytes(tmp_path):
    for number in range(8):
        metadata = {name: "{}" for name in ("base", "b", "c", "d")}
        save_weights({"b": torch.zeros(3), "a": torch.ones(2)}, tmp_path / f"{number}.safetensors", metadata)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    state, read = read_weights(tmp_path / "0.safetensors")
    assert torch.equal(state["a"], torch.ones(2))
    assert metadata.items() <= read.items()


ENTRIES_OF_A_LOG = [{"step": step, "loss": 1.0} for step in range(1, 11)]


@pytest.fixture
def log(tmp_path):
    """The log of a run of ten steps."""
    write_json(tmp_path / "run.json", {"training": {"step": 10}})
    (tmp_path / "log.jsonl").write_text("".join(map(json_line, ENTRIES_OF_A_LOG)))
    assert read_log(tmp_path).to_dict("records") == ENTRIES_OF_A_LOG
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"step": 7', '"step": 8'), r"line 7: damaged \(its checksum differs\)"),
        (lambda text: text + '{"step": 11,', "line 11: damaged"),
        (lambda text: text[: text.index('{"step": 7')], "ends at step 6, before the training"),
        (lambda text: "", "ends at step 0, before the training"),
    ],
    ids=["a digit", "half a line", "cut", "empty"],
)
def test_damage_to_a_log_is_named(log, change, message):
    log.write_text(change(log.read_text()))
    with pytest.raises(ValueError, match=rf"log.jsonl.*{message}.*train that run again"):
        read_log(log.parent)


def test_a_missing_log_is_named(log):
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl is missing: train that run first"):
        read_log(log.parent)


def test_a_log_of_an_earlier_form_is_read(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES_OF_A_LOG))
    assert read_log(tmp_path).to_dict("records") == ENTRIES_OF_A_LOG
