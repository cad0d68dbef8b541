"""What was made of what."""

import json

import pytest

from ldmae.core.errors import UserError
from ldmae.core.provenance import Record, Records, changed, read_record, write_record

SETTINGS, INPUTS = {"rate": 1, "model": {"width": 8}}, {"images": "abc"}


def finish(folder, name="latents", settings=SETTINGS, inputs=INPUTS, steps=0):
    with Records(folder).running(name, settings, inputs, steps) as record:
        record.outputs = {name: "out"}
    return Records(folder).stages[name]


def test_changes_are_listed_by_dotted_key():
    before = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 0}
    now = {"a": 1, "b": {"c": [1, 2], "d": 2}, "come": "x"}
    assert changed(before, now) == ["b.c: [1] -> [1, 2]", "come: None -> 'x'", "gone: 0 -> None"]
    assert changed(before, before) == []


def test_a_setting_that_came_later_had_its_default():
    defaults = {"model": {"noise": 0.0}, "model_2": 1}
    record = Record({"model": {"width": 8}})
    assert record.changes({"model": {"width": 8, "noise": 0.0}}, {}, defaults) == []
    assert record.changes({"model": {"width": 8, "noise": 0.3}}, {}, defaults) == ["model.noise: 0.0 -> 0.3"]


def test_an_input_that_is_not_known_yet_is_not_compared():
    record = Record(inputs={"images": "abc", "encoder": "def"})
    assert record.changes({}, {"images": "abc", "encoder": None}) == []
    assert record.changes({}, {"images": "xyz", "encoder": None}) == ["images: 'abc' -> 'xyz'"]
    assert record.changes({}, {"images": "abc"}) == ["encoder: 'def' -> None"]


def test_a_record_is_read_as_it_was_written_and_another_thing_is_named(tmp_path):
    path = tmp_path / "made_of.json"
    assert read_record(path) is None
    record = Record(SETTINGS, INPUTS, {"latents": "out"}, "done", 1.5, processes=2)
    write_record(path, record)
    assert read_record(path) == record
    for content in ('{"mood": 1}', '{"settings": []}', '{"seconds": "long"}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"made_of\.json was written by another version .*delete it"):
            read_record(path)


def test_an_interrupted_stage_is_running_and_its_seconds_add_up(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 107.0])
    monkeypatch.setattr("ldmae.core.provenance.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), Records(tmp_path).running("latents", SETTINGS, INPUTS):
        raise KeyboardInterrupt
    assert Records(tmp_path).stages["latents"].status == "running"
    record = finish(tmp_path)
    assert (record.status, record.seconds) == ("done", 12.0)
    assert record.finished


def test_a_tick_keeps_the_seconds_that_a_kill_would_lose(tmp_path):
    records = Records(tmp_path)
    with records.running("latents", SETTINGS, INPUTS):
        records.tick("latents", 42.0)
        assert Records(tmp_path).stages["latents"].seconds == 42.0


def test_extending_a_training_adds_to_its_seconds_and_redoing_a_stage_does_not(tmp_path, monkeypatch):
    clock = iter(float(second) for second in (0, 5, 10, 17, 20, 24, 30, 36))
    monkeypatch.setattr("ldmae.core.provenance.time.monotonic", lambda: next(clock))
    assert [finish(tmp_path, "diffusion", steps=steps).seconds for steps in (10, 20)] == [5.0, 12.0]
    assert [finish(tmp_path, "pipeline").seconds for _ in range(2)] == [4.0, 6.0]


def test_a_stage_that_resumes_with_a_setting_that_came_later_keeps_its_record(tmp_path):
    before = finish(tmp_path, "diffusion", steps=10)
    defaults = {"noise": 0.0}
    with Records(tmp_path).running("diffusion", {**SETTINGS, "noise": 0.0}, INPUTS, 20, defaults) as record:
        assert record.made_of == before.made_of


def test_only_a_finished_stage_has_an_output(tmp_path):
    records = Records(tmp_path)
    assert records.output("latents") == ""
    with records.running("latents", SETTINGS, INPUTS) as record:
        record.outputs = {"latents": "out"}
        assert records.output("latents") == ""
    assert records.output("latents") == Records(tmp_path).output("latents") == "out"


def test_other_processes_than_the_main_one_write_nothing(tmp_path):
    with Records(tmp_path, writes=False).running("latents", SETTINGS, INPUTS):
        pass
    assert not (tmp_path / "stages.json").exists()


def test_records_of_another_version_or_damaged_ones_are_named(tmp_path):
    path = tmp_path / "stages.json"
    damaged = (3, [{"name": "latents", "mood": 1}], [{"name": "latents", "seconds": "long"}])
    contents = [{"schema": 2, "stages": stages} for stages in damaged]
    for content in (*contents, {"records": []}, [], {"schema": 1, "stages": []}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"stages\.json was written by another .* name .*pipeline"):
            Records(tmp_path)
    path.write_text('{"stages": [')
    with pytest.raises(UserError, match=r"stages\.json is not JSON"):
        Records(tmp_path)
