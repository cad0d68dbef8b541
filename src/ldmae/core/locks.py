"""The lock of a folder: two programs never work on one at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ldmae.core.errors import UserError
from ldmae.core.files import LOCK, disk_errors, remove_leftovers
from ldmae.core.progress import tell


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the operating system frees when the process ends, however it ends.

    Folders that it makes are removed where a UserError leaves no file in them.

    Raises:
        UserError: another program works on the folder.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":  # of several processes of one run, the main one holds it
        yield
        return
    with disk_errors(folder / LOCK):
        file = (folder / LOCK).open("w")
    with file:
        try:
            # not flock, which a killed program's loading processes would go on holding for some seconds
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another program is working on {folder}; wait for it, or name another folder"
                ) from error
            tell(  # as on some network disks
                f"{folder} is on a disk that cannot lock files ({error.strerror}): let no second program "
                "work on it at the same time"
            )
        remove_leftovers(folder)
        try:
            yield
        except UserError:
            if made and all(path.is_dir() or path == folder / LOCK for path in folder.rglob("*")):
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # somebody else has written there
                    for path in made[1:]:
                        path.rmdir()
            raise
