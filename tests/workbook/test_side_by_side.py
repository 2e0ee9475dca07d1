"""Stages side by side: the order of DVC's graph, what a failure leaves, the fork server, the lock."""

import asyncio
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace

import pytest
from commands import environment, run
from safetensors import SafetensorError
from typer.testing import CliRunner

from workbook import __main__, fork_server, lock, side_by_side
from workbook.config import ProfileError
from workbook.paths import ROOT

pytest.importorskip("dvc")

STAGES = """
stages:
  first:
    foreach: [x]
    do:
      cmd: printf 'half\\rwhole\\n' && echo 1 > first.txt
      outs: [first.txt]
  broken:
    foreach: [x]
    do:
      cmd: "echo 'torch.OutOfMemoryError: no such thing' && false"
      deps: [first.txt]
      outs: [broken.txt]
  behind:
    foreach: [x]
    do:
      cmd: cp broken.txt behind.txt
      deps: [broken.txt]
      outs: [behind.txt]
  other:
    foreach: [x]
    do:
      cmd: cp first.txt other.txt
      deps: [first.txt]
      outs: [other.txt]
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small pipeline of plain commands, run once with a failure in it: (folder, what became of it, printed)."""
    folder = tmp_path_factory.mktemp("pipeline")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", environment(folder)["PATH"])
        made = side_by_side.Pipeline(SimpleNamespace(name="tiny"), side_by_side.graph(), 2)
        made.paths.logs.mkdir(parents=True)
        with redirect_stdout(io.StringIO()) as printed:
            asyncio.run(side_by_side.run_all(made))
    return folder, made, printed.getvalue()


@pytest.fixture
def folder(pipeline, monkeypatch):
    """The pipeline's folder, in which the test then is."""
    monkeypatch.chdir(pipeline[0])
    monkeypatch.setenv("PATH", environment(pipeline[0])["PATH"])
    return pipeline[0]


def test_the_graph_is_dvcs(folder):
    whole = {"first@x": set(), "broken@x": {"first@x"}, "behind@x": {"broken@x"}, "other@x": {"first@x"}}
    assert side_by_side.graph() == whole
    assert side_by_side.graph("other@x") == {"first@x": set(), "other@x": {"first@x"}}
    assert side_by_side.stale(["other@x"]) == {}
    assert side_by_side.stale([]) == {"broken@x": set(), "behind@x": {"broken@x"}}
    with pytest.raises(ProfileError, match="frist@x"):
        side_by_side.stale(["frist@x"])


def test_what_is_missing_is_made_where_it_is_read(folder):
    first = folder / "first.txt"
    first.rename(folder / "aside.txt")
    assert side_by_side.stale(["other@x"]) == {}
    assert side_by_side.stale(["first@x", "other@x"]) == {"first@x": set(), "other@x": {"first@x"}}
    shutil.rmtree(folder / ".dvc" / "cache")  # what is missing cannot come from there either
    assert side_by_side.stale(["other@x"]) == {}
    assert side_by_side.stale(["broken@x"]) == {"first@x": set(), "broken@x": {"first@x"}}
    first.write_text("")  # as a kill leaves it
    assert side_by_side.stale(["other@x"]) == {"first@x": set(), "other@x": {"first@x"}}
    (folder / "aside.txt").rename(first)
    assert side_by_side.stale(["other@x"]) == {}


def test_the_record_is_short_while_stages_run_and_whole_afterwards(folder):
    before = lock.entries()
    assert before.keys() == {"first@x", "other@x"}
    lock.shorten({"other@x", "broken@x"})
    assert lock.entries(lock.RECORD.read_bytes()).keys() == {"other@x"}
    assert lock.entries() == before
    (folder / "other.txt").write_text("changed")
    run(folder, "dvc", "repro", "--single-item", "other@x")  # its entry is written into the short record
    lock.shorten(())
    assert lock.entries(lock.RECORD.read_bytes()) == {}
    assert lock.mend() == []  # as after a kill
    assert not lock.WHOLE.exists()
    assert lock.entries(lock.RECORD.read_bytes()) == before
    assert "up to date" in run(folder, "dvc", "status", "first@x", "other@x")


def test_selecting_a_profile_puts_the_record_back(folder, monkeypatch):
    monkeypatch.setattr(__main__.pipeline, "select", lambda name: False)
    before = lock.entries()
    lock.shorten(())  # and a kill
    assert CliRunner().invoke(__main__.app, ["profile", "x"]).exit_code == 0
    assert lock.entries(lock.RECORD.read_bytes()) == before


def test_the_record_keeps_nothing_of_outputs_that_are_to_be_made(folder):
    before = lock.entries()
    (folder / "other.txt").rename(folder / "aside.txt")
    lock.shorten({"first@x", "other@x"})
    assert lock.entries(lock.RECORD.read_bytes()).keys() == {"first@x"}
    lock.RECORD.write_bytes(b"stages: [")  # by a DVC that was killed as it wrote
    assert "dvc.lock was damaged and is removed" in lock.mend()[0]
    assert lock.entries(lock.RECORD.read_bytes()) == before
    (folder / "aside.txt").rename(folder / "other.txt")


def test_dvc_reads_the_record_as_it_was_written(tmp_path):
    from dvc.utils.serialize import load_yaml

    file = tmp_path / "dvc.lock"
    entry = {
        "md5": "12e45678901234567890123456789012",
        "cmd": "true",
        "params": {"lr": 1e-05, "none": None, "no": "0123"},
    }
    file.write_text(lock.text_of({"a@x": entry}))
    assert load_yaml(str(file)) == {"schema": "2.0", "stages": {"a@x": entry}}
    assert lock.entries(file.read_bytes()) == {"a@x": entry}
    assert lock.entries("stages: {a@x: {lr: 1e-05}}") == {"a@x": {"lr": 1e-05}}  # as DVC writes it


def test_the_record_waits_for_a_dvc_that_is_busy(folder):
    from dvc.repo import Repo

    before = lock.RECORD.read_bytes()
    with Repo(folder).lock:
        lock.shorten(())
        assert lock.RECORD.read_bytes() == before
    assert not lock.WHOLE.exists()
    lock.shorten(())
    with Repo(folder).lock, pytest.raises(lock.LockedError, match="dvc.lock is not whole: wait for it"):
        lock.mend()  # or every stage would seem to be new
    assert lock.mend() == []
    assert lock.entries() == lock.entries(before)


def test_a_failure_stops_what_needs_it_and_nothing_else(pipeline):
    folder, made, printed = pipeline
    assert made.done == {"first@x", "other@x"}
    assert made.failed == {"broken@x": "torch.OutOfMemoryError: no such thing"}
    assert list(made.waiting) == ["behind@x"]
    assert (folder / "other.txt").read_text() == "1\n"
    log = (folder / "runs/tiny/logs/first@x.log").read_bytes()
    assert b"whole" in log
    assert b"\r" not in log
    assert "no such thing" in (folder / "runs/tiny/logs/broken@x.log").read_text()
    assert any("broken@x FAILED" in line and "of 4 stages, 1 failed" in line for line in printed.splitlines())


def test_a_failed_pipeline_says_what_failed_at_its_end(pipeline, capsys):
    _, made, _ = pipeline
    assert not side_by_side.conclude(SimpleNamespace(name="tiny"), made, 0.0)
    said = capsys.readouterr().out
    assert (
        "1 of the stages failed:\n  broken@x: torch.OutOfMemoryError: no such thing\n      runs/tiny/logs/broken@x.log"
        in said
    )
    assert "not run, because they need these: behind@x" in said


def test_time_left_is_that_of_the_stages_that_wait(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waiting = side_by_side.Pipeline(SimpleNamespace(name="tiny"), {"a@x": set(), "a@y": set(), "b@x": {"a@x"}}, 2)
    assert waiting.left() is None
    waiting.seconds = {"a@x": 10.0, "b@z": 40.0}
    assert waiting.left() == (10 + 10 + 40) / 2
    assert [side_by_side.clock(s) for s in (41, 720, 11100)] == ["41 s", "12 min", "3 h 05"]


@contextmanager
def serving(folder, setup="pass"):
    """A fork server that has imported nothing: the environment of a command that finds it."""
    path = str(folder / "socket")
    code = f"from workbook import fork_server as f; f.LIBRARIES = (); {setup}; f.serve({path!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=environment(ROOT)) as process:
        assert process.stdout.readline() == b"ready\n"
        yield {**environment(ROOT), fork_server.VARIABLE: path}
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_stage_says_and_returns_the_same_with_a_server_and_without(tmp_path):
    command = [sys.executable, "-m", "workbook", "world", "laptop-none"]
    with serving(tmp_path) as served:
        for variables in (served, environment(ROOT)):
            done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
            assert done.returncode == 1
            assert "error: no params.yaml: select a profile first" in done.stderr
            done = subprocess.run([*command, "--no"], cwd=tmp_path, env=variables, capture_output=True, text=True)
            assert done.returncode == 2


def test_a_stage_ends_with_the_command_that_waits_for_it(tmp_path):
    started = tmp_path / "started"
    stage = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(60)"
    with serving(tmp_path, f"f.runpy.run_module = lambda *_, **__: exec({stage!r})") as served:
        command = subprocess.Popen([sys.executable, "-m", "workbook", "world", "x"], cwd=tmp_path, env=served)
        wait(lambda: started.is_file() and started.read_text())
        process = int(started.read_text())
        command.kill()
        command.wait()
        wait(lambda: not runs(process))


def wait(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_while_a_pipeline_is_under_way_no_profile_is_selected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lock.alone("make repro PROFILE=laptop") as share:
        held = rf"PROFILE=laptop, process {os.getpid()} on .* since .*Wait for it"
        with pytest.raises(lock.LockedError, match=held), lock.alone("other"):
            pass
        share()
        with lock.stage("stage2@x"), pytest.raises(lock.LockedError, match="PROFILE=laptop"), lock.alone("other"):
            pass
    with lock.stage("x"), pytest.raises(lock.LockedError, match="a stage, started by dvc"), lock.alone("other"):
        pass
    with lock.alone("other"):
        pass


def test_a_killed_holder_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with lock.stage("stage2@x"):
        lock.FILE.write_text(f"make repro PROFILE=x, process {ended.pid} on {socket.gethostname()} since 10:00\n")
        killed = r"since 10:00 \(it was killed, and its stages live on\)"
        with pytest.raises(lock.LockedError, match=killed), lock.alone("other"):
            pass


def test_a_stage_is_run_once_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lock.stage("stage2@x"), lock.stage("stage2@y"):
        held = f"stage2@x is being run by process {os.getpid()}: wait for it"
        with pytest.raises(lock.LockedError, match=held), lock.stage("stage2@x"):
            pass
        monkeypatch.setenv("RANK", "1")  # a process of the same launch
        with lock.stage("stage2@x"):
            pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(30, "Read-only file system", "runs/x"),
        PermissionError(13, "Permission denied", "runs/x"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0: c10"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bad_disk_is_one_clear_error(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(__main__, "app", fail)
    with pytest.raises(SystemExit, match="error: .*: make room, .* start the same command again") as end:
        __main__.main()
    assert end.value.code.count("\n") == 1  # the bar's


def test_selecting_is_refused_with_the_name_of_the_holder(tmp_path):
    code = (
        "from workbook import lock; import time\nwith lock.alone('make repro PROFILE=x'):\n print(flush=True)\n input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(ROOT), stdin=-1, stdout=-1) as holder:
        holder.stdout.readline()
        select = [sys.executable, "-m", "workbook", "profile", "smoke"]
        done = subprocess.run(select, cwd=tmp_path, env=environment(ROOT), capture_output=True, text=True)
        holder.communicate(b"\n")
    assert done.returncode == 1
    assert f"a pipeline is under way here: make repro PROFILE=x, process {holder.pid}" in done.stderr
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (".dvc/tmp/rwlock", b"", "rwlock was damaged and is removed"),
        (".dvc/tmp/rwlock", b"{", "rwlock was damaged and is removed"),
        ("dvc.lock", b"", "dvc.lock was empty and is removed"),
    ],
)
def test_what_a_killed_dvc_has_left_is_put_away(tmp_path, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    assert said in lock.mend()[0]
    assert not file.exists()
    assert lock.mend() == []


@pytest.mark.parametrize("content", [b"stages: [", b"\xff\xfe", b"- a"])
def test_a_damaged_record_is_left_to_a_person(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_bytes(content)
    with pytest.raises(lock.LockedError, match=r"restore it \(git checkout dvc.lock\) or delete it"):
        lock.mend()
