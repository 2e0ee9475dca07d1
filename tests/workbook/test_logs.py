"""The logs of runs as tables."""

import json

import pandas as pd
import pytest

from workbook.logs import read_log


def write_log(root, run, seed, step_seconds, teacher=None):
    """A run that logs every second step, the time of a step as given."""
    folder = root / run / f"s{seed}"
    folder.mkdir(parents=True)
    with (folder / "log.jsonl").open("w", encoding="utf-8") as log:
        for step in range(2, 22, 2):
            seconds = 5 + step * step_seconds
            event = {"step": step, "loss": 3 / step, "lm_loss": 2 / step, "vra_loss": None, "seconds": seconds}
            if teacher:
                event["vra_loss"] = 1 / step
            log.write(json.dumps(event) + "\n")
    return read_log(folder).assign(run=run, seed=seed)


@pytest.fixture
def logs(tmp_path):
    return pd.concat([
        write_log(tmp_path, "baseline", 0, 2.0),
        write_log(tmp_path, "baseline", 1, 4.0),
        write_log(tmp_path, "viral", 0, 2.1, teacher=0.1),
        write_log(tmp_path, "viral", 2, 3.6),
    ])  # fmt: skip


def test_a_log_is_a_table_of_its_events(logs):
    viral = logs.query("run == 'viral' and seed == 0")
    assert viral["step"].tolist() == list(range(2, 22, 2))
    assert viral["vra_loss"].tolist() == [1 / step for step in range(2, 22, 2)]
    assert logs.query("run == 'baseline'")["vra_loss"].isna().all()


def test_broken_logs_name_the_file(logs, tmp_path):
    folder = tmp_path / "baseline" / "s0"
    log = folder / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 22,')
    with pytest.raises(ValueError, match=r"log.jsonl, line 11: damaged"):
        read_log(folder)
    log.write_text("")
    with pytest.raises(ValueError, match="ends at step 0"):
        read_log(folder)
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl is missing"):
        read_log(folder)
