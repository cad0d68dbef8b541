"""metrics.jsonl."""

import json

import pytest

from ldmae.core.errors import UserError
from ldmae.training.metrics import append_metrics, cut_back


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    append_metrics(path, {"stage": "a", "step": 1})
    append_metrics(path, {"stage": "a", "step": 2})
    assert read(path) == [{"stage": "a", "step": 1}, {"stage": "a", "step": 2}]


def test_what_a_stage_wrote_after_the_checkpoint_is_dropped_and_other_stages_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"stage": stage, "step": step} for stage in ("a", "b") for step in (10, 20, 30)]
    for line in lines:
        append_metrics(path, line)
    cut_back(path, "a", 20)
    assert read(path) == [line for line in lines if line["stage"] == "b" or line["step"] <= 20]


def test_half_a_line_that_a_kill_left_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"stage": "a", "step": 10})
    with path.open("a") as file:
        file.write('{"stage": "a", "st')
    cut_back(path, "a", 10)
    append_metrics(path, {"stage": "a", "step": 20})
    assert [line["step"] for line in read(path)] == [10, 20]


def test_without_a_file_nothing_is_cut(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", "a", 0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_disk_that_refuses_the_line_is_a_message(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        append_metrics(tmp_path / "metrics.jsonl", {"stage": "a", "step": 1})
