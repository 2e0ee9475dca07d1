"""Stages side by side: in an order that waits for what they need, for DVC as if it had run them itself."""

import re
import subprocess
import sys
from collections import OrderedDict

import pytest
from commands import environment, run

from workbook import pipeline, side_by_side

serialize = pytest.importorskip("dvc.utils.serialize")


def test_every_kind_of_stage_but_the_last_two_has_a_group():
    grouped = {kind for kinds, _ in side_by_side.GROUPS for kind in kinds}
    assert grouped == set(pipeline.KINDS) - {"claims", "report"}


def test_no_group_holds_what_one_of_it_waits_for(smoke_copy):
    last = {kind: i for i, (kinds, _) in enumerate(side_by_side.GROUPS) for kind in kinds}
    needs = re.findall(r'"(\w+)@[^"]+" -> "(\w+)@[^"]+"', run(smoke_copy, "dvc", "dag", "--dot"))
    assert {("stage1", "stage2"), ("evaluate", "notebook")} <= set(needs)
    assert [pair for pair in needs if pair[1] in last and last[pair[0]] >= last[pair[1]]] == []


def test_a_changed_lock_file_reads_as_if_dvc_had_changed_it(tmp_path):
    values = {
        "none": None,
        "rate": 1e-5,
        "text": "1e-5",
        "yes": "yes",
        "list": [0, 0.5],
        "folder": "runs/" + "long/" * 40,
    }
    new = OrderedDict(cmd="python", deps=[OrderedDict(path="a", size=3)], params=values)
    for name, modify in (("theirs", serialize.modify_yaml), ("ours", side_by_side._modify_yaml)):
        for stage in ("b", "a", "b"):
            with modify(tmp_path / name) as data:
                data.setdefault("stages", {})[stage] = new
    theirs, ours = (serialize.load_yaml(tmp_path / name) for name in ("theirs", "ours"))
    assert ours == theirs == {"stages": {"b": new, "a": new}}
    assert list(ours["stages"]) == ["b", "a"]


@pytest.mark.parametrize("command", ["python -m workbook cknna smoke-none", "echo cknna"])
def test_a_stage_that_fails_fails_for_dvc(smoke_copy, command):
    code = (
        f"import os; from viral_core import side_by_side as s; s._run(None, {command!r}, cwd='.', env=dict(os.environ))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=smoke_copy, env=environment(smoke_copy), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"StageCmdFailedError: failed to run: {command}" in done.stderr
