"""Which stages of a run are done, and the run folder's lock."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ldmae.core.errors import UserError
from ldmae.stages import StageBook, changed_settings, locked, stages_from

TUNING, LATENTS, PIPELINE = "autoencoder.tuning", "latents", "pipeline"
SETTINGS, INPUTS = {"rate": 1, "model": {"width": 8}}, {"images": "abc"}


@pytest.fixture
def made(tmp_path):
    """What a stage makes."""
    path = tmp_path / "made"
    path.mkdir()
    return path


def finish(folder, name=LATENTS, settings=SETTINGS, inputs=INPUTS, steps=0, output="out"):
    with StageBook(folder).running(name, settings, inputs, steps) as record:
        record.output = output


def needed(folder, made, name=LATENTS, settings=SETTINGS, inputs=INPUTS, steps=0):
    return StageBook(folder).needed(name, settings, inputs, made, steps)


def test_a_new_stage_is_needed_and_a_finished_one_is_not(tmp_path, made):
    assert needed(tmp_path, made)
    finish(tmp_path)
    assert not needed(tmp_path, made)


def test_a_stage_whose_output_is_gone_is_needed(tmp_path, made):
    finish(tmp_path)
    made.rmdir()
    assert needed(tmp_path, made)


def test_an_interrupted_stage_is_needed_and_its_seconds_add_up(tmp_path, made, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 107.0])
    monkeypatch.setattr("ldmae.stages.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), StageBook(tmp_path).running(LATENTS, SETTINGS, INPUTS):
        raise KeyboardInterrupt
    assert StageBook(tmp_path).records[LATENTS].status == "running"
    assert needed(tmp_path, made)
    finish(tmp_path)
    record = StageBook(tmp_path).records[LATENTS]
    assert (record.status, record.seconds) == ("done", 12.0)
    assert record.finished


def test_a_tick_keeps_the_seconds_that_a_kill_would_lose(tmp_path):
    book = StageBook(tmp_path)
    with book.running(LATENTS, SETTINGS, INPUTS):
        book.tick(LATENTS, 42.0)
        assert StageBook(tmp_path).records[LATENTS].seconds == 42.0


def test_changed_settings_or_inputs_make_a_stage_needed(tmp_path, made):
    finish(tmp_path)
    assert needed(tmp_path, made, settings={**SETTINGS, "rate": 2})
    assert needed(tmp_path, made, inputs={"images": "other"})


@pytest.mark.parametrize("done", [True, False])
def test_a_training_whose_settings_changed_is_refused_with_the_keys(tmp_path, made, done):
    if done:
        finish(tmp_path, TUNING, steps=10)
    else:
        with pytest.raises(KeyError), StageBook(tmp_path).running(TUNING, SETTINGS, INPUTS, 10):
            raise KeyError
    changed = {"rate": 1, "model": {"width": 16}, "new": True}
    message = (
        r"model\.width: 8 -> 16; new: None -> True\. .* old ones, .*--out, .*--restart autoencoder\.tuning"
    )
    with pytest.raises(UserError, match=message):
        needed(tmp_path, made, TUNING, settings=changed, steps=10)
    with pytest.raises(UserError, match="images: 'abc' -> 'other'"):
        needed(tmp_path, made, TUNING, inputs={"images": "other"}, steps=10)


def test_more_steps_extend_a_training_and_fewer_are_refused(tmp_path, made):
    finish(tmp_path, TUNING, steps=10)
    assert not needed(tmp_path, made, TUNING, steps=10)
    assert needed(tmp_path, made, TUNING, steps=11)
    with pytest.raises(
        UserError, match=r"has done 10 steps, 9 are asked for; .* --restart autoencoder.tuning"
    ):
        needed(tmp_path, made, TUNING, steps=9)


def test_extending_a_training_adds_to_its_seconds_and_redoing_a_stage_does_not(tmp_path, monkeypatch):
    clock = iter(float(second) for second in (0, 5, 10, 17, 20, 24, 30, 36))
    monkeypatch.setattr("ldmae.stages.time.monotonic", lambda: next(clock))
    for steps in (10, 20):
        finish(tmp_path, TUNING, steps=steps)
    for _ in range(2):
        finish(tmp_path, PIPELINE)
    records = StageBook(tmp_path).records
    assert records[TUNING].seconds == 12.0
    assert records[PIPELINE].seconds == 6.0


def test_only_a_finished_stage_has_an_output(tmp_path):
    book = StageBook(tmp_path)
    assert book.output(LATENTS) == ""
    with book.running(LATENTS, SETTINGS, INPUTS) as record:
        record.output = "out"
        assert book.output(LATENTS) == ""
    assert book.output(LATENTS) == StageBook(tmp_path).output(LATENTS) == "out"


def test_the_book_lists_stages_in_their_order_as_json(tmp_path):
    for name in (PIPELINE, LATENTS, TUNING):
        finish(tmp_path, name)
    stored = json.loads((tmp_path / "stages.json").read_text())
    assert stored["schema"] == 1
    assert [entry["name"] for entry in stored["stages"]] == [TUNING, LATENTS, PIPELINE]


def test_other_processes_than_the_main_one_write_nothing(tmp_path, made):
    book = StageBook(tmp_path, writes=False)
    with book.running(LATENTS, SETTINGS, INPUTS):
        pass
    book.restart([LATENTS], {LATENTS: [made]})
    assert made.exists()
    assert not (tmp_path / "stages.json").exists()


def test_a_book_of_another_version_or_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "stages.json"
    for content in ('{"stages": [{"name": "latents", "mood": 1}]}', '{"records": []}', "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"stages\.json was written by another version"):
            StageBook(tmp_path)
    path.write_text('{"stages": [')
    with pytest.raises(UserError, match=r"stages\.json is not JSON"):
        StageBook(tmp_path)


# ---- begin anew


def test_restart_forgets_a_stage_and_all_after_it_and_what_they_made(tmp_path):
    folders = {}
    for name in (TUNING, LATENTS, PIPELINE, "evaluation"):
        finish(tmp_path, name)
        folders[name] = [tmp_path / name, tmp_path / f"{name}.json"]
        folders[name][0].mkdir()
        (folders[name][0] / "x").write_text("")
        folders[name][1].write_text("")
    StageBook(tmp_path).restart(stages_from(LATENTS), folders)
    assert list(StageBook(tmp_path).records) == [TUNING]
    assert all(path.exists() for path in folders[TUNING])
    assert not any(path.exists() for name in (LATENTS, PIPELINE, "evaluation") for path in folders[name])
    StageBook(tmp_path).restart(stages_from(LATENTS), folders)  # nothing there: nothing to do


def test_a_kill_while_a_stage_is_forgotten_leaves_it_forgotten(tmp_path, monkeypatch):
    finish(tmp_path, LATENTS)
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "x").write_text("")

    def killed(path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldmae.stages.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            StageBook(tmp_path).restart([LATENTS], {LATENTS: [tmp_path / "latents"]})
    assert not (tmp_path / "latents").exists()
    assert StageBook(tmp_path).records == {}
    with locked(tmp_path):  # the next start
        assert not list(tmp_path.glob(".writing-*"))


def test_an_unknown_stage_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"no stage 'latent'; did you mean 'latents'\?; stages: autoencoder"):
        stages_from("latent")


def test_tuning_begun_anew_leaves_what_is_made_of_the_same_encoders_latents():
    everything = stages_from(TUNING)
    assert {LATENTS, "diffusion"} < set(everything)
    assert stages_from(TUNING, encoder_stays=True) == tuple(
        name for name in everything if name not in (LATENTS, "diffusion")
    )
    assert stages_from(LATENTS, encoder_stays=True) == stages_from(LATENTS)
    assert stages_from(None) == ()


def test_changed_settings_are_listed_by_dotted_key():
    before = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 0}
    now = {"a": 1, "b": {"c": [1, 2], "d": 2}, "come": "x"}
    assert changed_settings(before, now) == ["b.c: [1] -> [1, 2]", "come: None -> 'x'", "gone: 0 -> None"]
    assert changed_settings(before, before) == []


# ---- the lock

HOLD = """
import sys, time
from pathlib import Path
from ldmae.stages import locked
from ldmae.core.errors import UserError
try:
    with locked(Path(sys.argv[1])):
        if sys.argv[2] == "fork":  # as a data loader does; the child outlives a killed parent
            import os
            if os.fork() == 0:
                time.sleep(30)
        print("held", flush=True)
        time.sleep(30)
except UserError as error:
    print(error, flush=True)
"""


def start(folder, how="alone"):
    command = [sys.executable, "-c", HOLD, str(folder), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def test_two_programs_cannot_work_on_a_folder_and_a_kill_frees_it_at_once(tmp_path):
    folder = tmp_path / "run"
    first, said = start(folder, "fork")
    try:
        assert said == "held\n"
        with pytest.raises(UserError, match=r"another program is working on .*run; wait for it, .*--out"):
            locked(folder).__enter__()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        with locked(folder):
            assert time.monotonic() - began < 1
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_the_lock_is_free_after_the_block_and_after_an_exception(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError


def test_who_holds_the_lock_finds_no_leftovers_of_a_kill(tmp_path):
    (tmp_path / ".writing-x.pt").write_text("half")
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_of_several_processes_of_one_run_the_first_holds_the_lock(tmp_path, monkeypatch):
    (tmp_path / ".writing-x.pt").write_text("of the first process")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".writing-x.pt"]


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*\.lock.*permissions"), locked(tmp_path):
        pass


def test_a_disk_that_cannot_lock_files_is_used_with_a_word_of_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ldmae.stages.fcntl.lockf", refuse)
    with locked(tmp_path):
        pass
    assert "cannot lock files (No locks available)" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"), locked(tmp_path / "file"):
        pass
