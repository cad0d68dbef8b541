"""The lock of a folder."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from ldmae.core.errors import UserError
from ldmae.core.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from ldmae.core.locks import locked
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
        with pytest.raises(UserError, match=r"another program is working on .*run; wait for it, or name an"):
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


def test_a_disk_that_cannot_lock_files_is_used_with_a_word_of_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ldmae.core.locks.fcntl.lockf", refuse)
    with locked(tmp_path):
        pass
    assert "cannot lock files (No locks available)" in " ".join(capsys.readouterr().err.split())


def test_a_folder_or_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / ".lock").mkdir()
    for folder, told in (
        (tmp_path / "file", "file: .*file is a file"),
        (tmp_path, r"\.lock: .*\.lock is a folder"),
    ):
        with pytest.raises(UserError, match=f"cannot write .*{told}"), locked(folder):
            pass


def refuse(folder, within):
    with locked(folder):
        (folder / "cache").mkdir()
        if within:
            (folder / "kept").write_text("")
        raise UserError("no images")


@pytest.mark.parametrize(("before", "within"), [(False, False), (True, False), (False, True)])
def test_a_folder_that_a_refusal_leaves_empty_is_removed(tmp_path, before, within):
    folder = tmp_path / "runs" / "run"
    if before:
        folder.mkdir(parents=True)
    with pytest.raises(UserError, match="no images"):
        refuse(folder, within)
    assert folder.exists() == folder.parent.exists() == (before or within)
