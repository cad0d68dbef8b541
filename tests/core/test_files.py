"""Atomic writes and fingerprints."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldmae.core.errors import UserError, loading_errors
from ldmae.core.files import (
    TEMPORARY_PREFIX,
    atomic_folder,
    atomic_path,
    disk_errors,
    fingerprint,
    fingerprint_model,
    fingerprint_tensors,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def write_half(writing):
    with writing as temporary:
        (temporary / "new" if temporary.is_dir() else temporary).write_text("half")
        raise KeyError


# ---- files


def test_a_file_appears_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"  # what writers choose the format by
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(atomic_path(path))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_the_sync_is_a_message_and_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"no space left to write .*a.txt.*same command"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def fill(path, write):
    with atomic_path(path) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        write(temporary)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' device that is always full")
def test_a_device_that_is_full_ends_in_a_message(tmp_path):
    with pytest.raises(UserError, match="no space left"):
        fill(tmp_path / "a", lambda path: torch.save({"a": torch.zeros(1000)}, path))
    with pytest.raises(UserError, match="no space left"):
        fill(tmp_path / "a", lambda path: path.write_bytes(b"0" * 10_000))
    assert names(tmp_path) == []


REFUSED = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_folder, atomic_path
from ldmae.training.checkpoint import save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
folder, large = Path(sys.argv[1]), {"a": torch.zeros(50_000)}

def shard():
    with atomic_path(folder / "a.safetensors") as path:
        save_file(large, path)

def model():
    with atomic_folder(folder / "model") as path:
        save_file(large, path / "weights.safetensors")

for write in (shard, model, lambda: save_checkpoint(folder, 20, large, None)):
    try:
        write()
    except UserError as error:
        print(error)
"""


def test_a_write_that_the_system_refuses_midway_loses_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    write_text(tmp_path / "model" / "weights.safetensors", "old")
    for name in ("a.safetensors", "step-00000010.pt"):
        write_text(tmp_path / name, "old")
    command = [sys.executable, "-c", REFUSED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3, done.stdout
    assert names(tmp_path) == ["a.safetensors", "model", "step-00000010.pt", "weights.safetensors"]
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"old"}


def test_a_folder_that_refuses_is_named(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"cannot write .*a\.txt.*file is a file"):
        write_text(tmp_path / "file" / "a.txt", "new")  # a file stands where a folder should
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: Is a directory; \S*/folder is a folder: move it away"):
        write_text(tmp_path / "folder", "new")
    with pytest.raises(UserError, match="cannot write"), disk_errors(tmp_path):
        (tmp_path / "file" / "x").mkdir()


def test_other_errors_of_the_block_pass_through(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), atomic_path(tmp_path / "a"):
        raise RuntimeError("shapes do not match")
    shared = (
        "unable to write to file </torch_1_2_3>: No space left on device (28)"  # what torch says of /dev/shm
    )
    with pytest.raises(UserError, match="shm-size"), loading_errors(), atomic_path(tmp_path / "a"):
        raise RuntimeError(shared)
    with pytest.raises(BrokenPipeError), atomic_folder(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(OSError, match=r"^image file is truncated$"), atomic_folder(tmp_path / "a"):
        raise OSError("image file is truncated")
    with pytest.raises(UserError, match=r"^mine$"), atomic_folder(tmp_path / "a"):
        raise UserError("mine")


def test_what_cannot_be_read_on_the_way_is_named_as_such(tmp_path):
    (tmp_path / "package").mkdir()
    told = r"cannot write .*out: Is a directory; look at .*package, which it is made from"
    with pytest.raises(UserError, match=told), atomic_folder(tmp_path / "out"):
        (tmp_path / "package").read_bytes()


# ---- folders


def test_a_folder_takes_the_place_of_the_old_one_at_once(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
    assert names(tmp_path) == ["model", "new", "sub"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(KeyError):
        write_half(atomic_folder(path))
    assert names(tmp_path) == ["model", "old"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    rename = type(path).rename

    def refuse_the_new(self, target):
        if target == path and (self / "new").exists():
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", refuse_the_new)
    with pytest.raises(UserError, match="cannot write"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["model", "old"]


# ---- what a kill leaves


def test_leftovers_of_a_kill_are_removed_and_other_files_stay(tmp_path):
    (tmp_path / "latents").mkdir()
    for name in ("a.pt", f"{TEMPORARY_PREFIX}x.pt", f"latents/{TEMPORARY_PREFIX}y.safetensors", "latents/b"):
        (tmp_path / name).write_text("")
    (tmp_path / f"{TEMPORARY_PREFIX}folder" / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.pt", "b", "latents"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ldmae.core.files import atomic_folder
path = Path(sys.argv[1])
rename = Path.rename
def rename_and_die(self, target):
    if target == path:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, target)
Path.rename = rename_and_die
with atomic_folder(path) as temporary:
    (temporary / "new").write_text("new")
"""


def test_a_folder_killed_while_changing_places_comes_back(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    assert subprocess.run(command, check=False).returncode == -9
    assert not (tmp_path / "model").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model", "old"]


def test_leftovers_in_a_folder_that_another_program_has_locked_are_left_alone(tmp_path):
    run = tmp_path / "runs" / "emoji"
    run.mkdir(parents=True)
    for name in (".lock", f"{TEMPORARY_PREFIX}being-written.pt"):
        (run / name).write_text("")
    (tmp_path / f"{TEMPORARY_PREFIX}x.pt").write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".lock", f"{TEMPORARY_PREFIX}being-written.pt", "emoji", "runs"]
    remove_leftovers(run)
    assert names(tmp_path) == [".lock", "emoji", "runs"]


def left_by_a_kill(folder):
    """Leaves what a program that was to write a folder leaves when it is killed; returns its path."""
    code = "import os, sys; from ldmae.core.files import atomic_folder\n"
    code += (
        "with atomic_folder(sys.argv[1]) as temporary: print(temporary, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    return Path(done.stdout.strip())


def test_a_folder_that_is_being_written_is_left_alone_and_one_of_a_killed_program_is_not(tmp_path):
    left, other = left_by_a_kill(tmp_path / "published"), left_by_a_kill(tmp_path / "other")
    (tmp_path / f"{TEMPORARY_PREFIX}novel").mkdir()  # by whoever it is
    with atomic_folder(tmp_path / "published") as temporary:
        assert not left.exists()
        assert other.exists()
        (temporary / f"{TEMPORARY_PREFIX}y").write_text("")
        remove_leftovers(tmp_path)  # as whoever locks the folder above does
        with atomic_folder(tmp_path / "another"), atomic_folder(tmp_path / "published-too"):
            assert (temporary / f"{TEMPORARY_PREFIX}y").exists()
    assert names(tmp_path) == [f"{TEMPORARY_PREFIX}y", "another", "published", "published-too"]


@pytest.mark.parametrize("refused", ["flock", "open"])
def test_on_disks_without_locks_and_beside_folders_of_others_nothing_is_deleted(
    tmp_path, monkeypatch, refused
):
    left = left_by_a_kill(tmp_path / "train")
    opened = os.open

    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    def refuse_others(path, *arguments):
        return refuse() if path == left else opened(path, *arguments)

    if refused == "flock":
        monkeypatch.setattr("ldmae.core.files.fcntl.flock", refuse)
    else:
        monkeypatch.setattr("ldmae.core.files.os.open", refuse_others)
    with atomic_folder(tmp_path / "train") as train, atomic_folder(tmp_path / "val"):
        remove_leftovers(tmp_path)
        (train / "a").write_text("")
    assert names(tmp_path) == [left.name, "a", "train", "val"]
    (tmp_path / "train").rename(
        tmp_path / f"{TEMPORARY_PREFIX}replaced-train"
    )  # killed while changing places
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [left.name, "a", "train", "val"]


def test_a_current_directory_is_filled_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path()) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["new"]
    assert Path("new").read_text() == "new"  # this directory is still the one that has the name


# ---- JSON


def test_json_comes_back_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, None]})
    assert read_json(path) == {"ä": [1, None]}
    for damaged in (b'{"a"', b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.json is not JSON"):
            read_json(path)


# ---- fingerprints


def test_a_file_name_that_is_not_utf_8_is_written_and_comes_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"classes": [name]})
    assert read_json(tmp_path / "a.json") == {"classes": [name]}


def test_a_fingerprint_depends_on_parts_their_borders_and_their_order():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""], []]
    assert len({fingerprint(parts) for parts in texts}) == len(texts)
    assert fingerprint(["ab"]) == fingerprint([b"ab"]) == fingerprint(iter(["ab"]))


def test_a_fingerprint_of_tensors_depends_on_names_shapes_and_values_alone():
    a, b = torch.arange(6.0), torch.ones(2)
    base = fingerprint_tensors({"a": a, "b": b})
    assert base == fingerprint_tensors({"b": b, "a": a})
    assert base == fingerprint_tensors({"a": a.bfloat16(), "b": b.requires_grad_()})
    assert base == fingerprint_tensors({"a": torch.stack([a, a], 1)[:, 0], "b": b})  # strides do not count
    others = [
        {"a": a, "c": b},
        {"a": b, "b": a},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a + 1e-6, "b": b},
        {"a": a},
    ]
    assert len({base, *map(fingerprint_tensors, others)}) == len(others) + 1


def test_a_fingerprint_of_a_model_stays_when_its_class_learns_an_argument_that_is_unset():
    model = torch.nn.Linear(2, 2)
    hashes = []
    for config in ({"width": 2}, {"width": 2, "new_option": None}, {"width": 2, "new_option": 1}):
        model.config = config  # as a diffusers model has it
        hashes.append(fingerprint_model(model))
    assert hashes[0] == hashes[1] != hashes[2]
