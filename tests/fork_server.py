"""Starts the command line or code in forked children: many starts cost one import. Run as a program.

Reads one JSON request a line, answers one JSON line each: `{"start": …}` with the child's process id (which
is also its process group), `{"poll": pid}` with its exit code, negative for a signal, or null. It imports and
never computes, so that forking it is safe.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
from typing import Any

import pytest

import ldmae
from drawings import leave_blank  # beside this program
from small_features import look_small

LATE = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "scipy.stats",
    "skimage.color",
    "skimage.segmentation",
    "torch_fidelity",
)
"""What runs import when they need it."""
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")


def die_at_write(number: int, folder: str) -> None:
    """Kills this process and its loaders just before its `number`-th change to a file under `folder`."""
    left, process = number, os.getpid()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in WRITES or (event == "open" and (arguments[1] or "r") != "r")
        if changes and os.getpid() == process and os.fsdecode(str(arguments[0])).startswith(folder):
            left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)


def shard_on_cpu() -> None:
    """Makes accelerate take up FSDP, where its environment says so, on the CPU too: torch can do it."""
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    import ldmae.run.opening

    def opened(**settings: Any) -> Accelerator:
        PartialState(cpu=True)  # the processes' meeting; to accelerate they then are as those on GPUs
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return Accelerator(**settings)

    ldmae.run.opening.Accelerator = opened


def work(request: dict[str, Any]) -> None:
    """Becomes `ldmae ARGUMENTS…`, or the code that is asked for, and ends."""
    os.setsid()
    for stream, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['log']}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"] or ".")
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # as its environment says
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if request["largest_file"] is not None:  # as a disk that is full: the write fails, the signal is ignored
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["die_at_write"] is not None:
        die_at_write(*request["die_at_write"])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and "WORLD_SIZE" in os.environ:
        shard_on_cpu()
    look_small(pytest.MonkeyPatch())
    if not request["drawn"]:
        leave_blank(pytest.MonkeyPatch())
    sys.argv = ["ldmae", *request["arguments"]]
    if request["code"]:
        exec(request["code"], {"__name__": "__main__"})
        sys.exit(0)
    from ldmae.__main__ import main

    main()


def start(request: dict[str, Any]) -> int:
    """Forks a child for a request and returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(request)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def poll(child: int) -> int | None:
    """Returns a child's exit code, or None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve() -> None:
    """Answers requests until the input ends."""
    ours = [module.name for module in pkgutil.walk_packages(ldmae.__path__, "ldmae.")]
    for name in (*(name for name in ours if not name.startswith(("ldmae.app", "ldmae.__"))), *LATE):
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    gc.freeze()  # a collection in a child need not look through what was imported
    for line in sys.stdin:
        request = json.loads(line)
        answer = start(request["start"]) if "start" in request else poll(request["poll"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
