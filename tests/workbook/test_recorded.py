"""Archives of what runs have answered: what goes in, what comes back, and that nothing is overwritten."""

import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from workbook import recorded, side_by_side
from workbook.config import ProfileError
from workbook.paths import Paths
from workbook.scale import costs

PATHS = Paths("smoke")
OUTPUTS = {
    "stage1@smoke-vicuna-7b-clip": PATHS.stage1("vicuna-7b", "clip"),
    "stage2@smoke-viral-s0": PATHS.run("viral", 0),
    "stage2@smoke-residual-pre-s0": PATHS.run("residual-pre", 0),  # no notebook loads its weights
    "evaluate@smoke-residual-pre-s0": PATHS.evaluation("residual-pre", 0),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which four stages have run, and no DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "modified", lambda names: set())
    for name in OUTPUTS:
        made(name, "first")
    return tmp_path


def made(name: str, text: str) -> None:
    """Write a stage's output, and its entry in the lock."""
    out, lock = OUTPUTS[name], Path("dvc.lock")
    (out / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    (out / "checkpoint-1" / "file").write_text(f"{name} {text}")
    (out / "run.json").touch()
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {"claims@smoke": {"cmd": "x"}}
    stages[name] = {"cmd": "x", "outs": [{"path": str(out), "md5": text}]}
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_what_is_packed_comes_back_with_its_lock_and_in_its_last_state(here):
    assert recorded.pack("smoke") == PATHS.recorded / "001.tar.xz"
    assert recorded.pack("smoke") is None
    made("evaluate@smoke-residual-pre-s0", "second")
    assert recorded.pack("smoke") == PATHS.recorded / "002.tar.xz"
    locked = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    for out in OUTPUTS.values():
        shutil.rmtree(out)
    Path("dvc.lock").unlink()

    kept = {name: out for name, out in OUTPUTS.items() if name != "stage2@smoke-residual-pre-s0"}
    assert set(recorded.unpack("smoke")) == set(kept.values())
    for name, out in kept.items():
        state = "second" if name.startswith("evaluate") else "first"
        assert (out / "checkpoint-1" / "file").read_text() == f"{name} {state}"
    assert not OUTPUTS["stage2@smoke-residual-pre-s0"].exists()
    del locked["claims@smoke"]
    assert yaml.safe_load(Path("dvc.lock").read_text())["stages"] == locked


def test_what_is_not_what_was_recorded_is_left_out(here, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "modified", lambda names: {"evaluate@smoke-residual-pre-s0"} & set(names))
    with tarfile.open(recorded.pack("smoke")) as tar:
        assert not any(name.startswith(str(PATHS.evaluation("residual-pre", 0))) for name in tar.getnames())
    assert "evaluate@smoke-residual-pre-s0 is left out" in capsys.readouterr().out


def test_what_is_put_back_has_the_entry_that_it_was_packed_with(here):
    recorded.pack("smoke")
    name = "evaluate@smoke-residual-pre-s0"
    locked = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    shutil.rmtree(OUTPUTS[name])
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": locked | {name: locked[name] | {"cmd": "of another time"}}}))
    assert recorded.unpack("smoke") == [OUTPUTS[name]]
    assert yaml.safe_load(Path("dvc.lock").read_text())["stages"] == locked


def test_notebooks_of_which_git_holds_the_results_have_their_entries(here):
    recorded.pack("smoke")
    (PATHS.root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"ross@smoke": {"cmd": "x"}}}))
    recorded.unpack("smoke")
    assert yaml.safe_load(Path("dvc.lock").read_text())["stages"]["ross@smoke"] == {"cmd": "x"}


def test_another_profile_whose_name_begins_alike_is_not_packed(here, monkeypatch):
    other = Paths("smoke-mine").evaluation("viral", 0)
    monkeypatch.setitem(OUTPUTS, "evaluate@smoke-mine-viral-s0", other)
    made("evaluate@smoke-mine-viral-s0", "first")
    with tarfile.open(recorded.pack("smoke")) as tar:
        assert not any(name.startswith(str(other)) for name in tar.getnames())


def test_a_new_archive_overwrites_none(here):
    recorded.pack("smoke")
    (PATHS.recorded / "001.tar.xz").rename(PATHS.recorded / "002.tar.xz")
    made("evaluate@smoke-residual-pre-s0", "second")
    assert recorded.pack("smoke") == PATHS.recorded / "003.tar.xz"


def test_what_stages_took_is_kept_once(here):
    costs.note(PATHS.root, "stage2", "smoke-viral-s0", 3.0)
    recorded.pack("smoke")
    costs.note(PATHS.root, "evaluate", "smoke-viral-s0", 1.0)
    made("evaluate@smoke-residual-pre-s0", "second")
    recorded.pack("smoke")
    noted = costs.read_costs(PATHS.root)
    assert [entry["stage"] for entry in noted] == ["stage2", "evaluate"]
    recorded.unpack("smoke")
    assert costs.read_costs(PATHS.root) == noted
    (PATHS.root / costs.FILE).unlink()
    costs.note(PATHS.root, "measure", "smoke-viral-s0", 2.0)
    recorded.unpack("smoke")
    assert costs.read_costs(PATHS.root)[:2] == noted
    assert [entry["stage"] for entry in costs.read_costs(PATHS.root)] == ["stage2", "evaluate", "measure"]


@pytest.mark.parametrize("there", [True, False])
def test_what_came_out_the_same_has_its_new_entry(here, there):
    recorded.pack("smoke")
    name = "evaluate@smoke-residual-pre-s0"
    if not there:  # such as the weights of a training, once they have answered
        shutil.rmtree(OUTPUTS[name])
    locked = yaml.safe_load(Path("dvc.lock").read_text())
    locked["stages"][name]["cmd"] = "y"
    Path("dvc.lock").write_text(yaml.safe_dump(locked))
    second = recorded.pack("smoke")
    with tarfile.open(second) as tar:
        assert tar.getnames() == ["dvc.lock"]
    if there:
        shutil.rmtree(OUTPUTS[name])
    Path("dvc.lock").unlink()
    assert recorded.unpack("smoke") == [OUTPUTS[name]]
    assert yaml.safe_load(Path("dvc.lock").read_text())["stages"][name]["cmd"] == "y"


def test_weights_that_a_notebook_comes_to_load_are_packed_then(here, monkeypatch):
    (here / "dvc.yaml").touch()  # in which no notebook loads any
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "ROOT", here)
        recorded.pack("smoke")
    with tarfile.open(recorded.pack("smoke")) as tar:
        assert tar.getnames()[1:] == [f"{PATHS.run('viral', 0)}/{file}" for file in ("checkpoint-1/file", "run.json")]
    assert recorded.pack("smoke") is None


def test_a_profile_without_archives_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recorded.pack("smoke") is None
    with pytest.raises(ProfileError, match="no profile 'smoek'; there are: smoke, gpu, laptop"):
        recorded.pack("smoek")
    with pytest.raises(FileNotFoundError, match="runs/smoke/recorded holds no archives"):
        recorded.unpack("smoke")


def test_what_is_there_stays(here):
    recorded.pack("smoke")
    shutil.rmtree(OUTPUTS["stage2@smoke-viral-s0"])
    made("evaluate@smoke-residual-pre-s0", "of today")
    locked = yaml.safe_load(Path("dvc.lock").read_text())
    assert recorded.unpack("smoke") == [OUTPUTS["stage2@smoke-viral-s0"]]
    assert "of today" in (OUTPUTS["evaluate@smoke-residual-pre-s0"] / "checkpoint-1" / "file").read_text()
    assert yaml.safe_load(Path("dvc.lock").read_text()) == locked
    assert not list(PATHS.root.glob("tmp*"))
