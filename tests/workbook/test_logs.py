"""The logs of runs as tables."""

import json

import pytest

from workbook.logs import read_log


def write_log(folder, losses):
    """A run that logs every second step, with these losses of the alignment."""
    events = [
        {"step": step, "loss": 3 / step, "lm_loss": 2 / step, "vra_loss": loss, "seconds": 5 + 2.0 * step}
        for step, loss in zip(range(2, 22, 2), losses, strict=True)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_a_log_is_a_table_of_its_events(tmp_path):
    losses = [1 / step for step in range(2, 22, 2)]
    viral = read_log(write_log(tmp_path, losses))
    assert viral["step"].tolist() == list(range(2, 22, 2))
    assert viral["vra_loss"].tolist() == losses
    assert read_log(write_log(tmp_path, [None] * 10))["vra_loss"].isna().all()


def test_broken_logs_name_the_file(tmp_path):
    log = write_log(tmp_path, [None] * 10) / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 22,')
    with pytest.raises(ValueError, match=r"log.jsonl, line 11: damaged"):
        read_log(tmp_path)
    log.write_text("")
    with pytest.raises(ValueError, match="ends at step 0"):
        read_log(tmp_path)
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl is missing"):
        read_log(tmp_path)
