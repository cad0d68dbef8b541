"""Quick starts of `ldmae`, and of Python code, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Started:
    """A started `ldmae`, in a process group of its own."""

    server: Server
    process: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code (negative for a signal), or None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"poll": self.process})
        return self.code

    def kill(self, loaders: bool = True) -> None:
        """Ends it by SIGKILL, and its loading processes too, or leaves these behind."""
        if self.poll() is not None:
            return
        try:
            (os.killpg if loaders else os.kill)(self.process, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(self.process, signal.SIGKILL)

    def wait(self, timeout: float = 240) -> int:
        """Returns the exit code; an error after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"not done after {timeout} s:\n{self.output}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    @property
    def stdout(self) -> str:
        """What it printed as its answer."""
        return self.log.with_suffix(".out").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it told on its way."""
        return self.log.with_suffix(".err").read_text(errors="replace")

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.stderr + self.stdout


class Server:
    """Starts `ldmae` without waiting for its imports each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends a request and returns the answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def start(
        self,
        *arguments: object,
        code: str = "",
        drawn: bool = False,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        largest_file: int | None = None,
        die_at_write: tuple[int, Path] | None = None,
    ) -> Started:
        """Starts `ldmae ARGUMENTS…`, or Python code.

        Args:
            arguments: of the command line.
            code: what to run in place of `ldmae`, as after `python -c`.
            drawn: whether reports have their drawings.
            cwd: the current directory.
            environment: variables to add.
            largest_file: bytes above which a write to a file fails.
            die_at_write: (n, folder): SIGKILL just before the n-th change to a file in the folder.
        """
        self.count += 1
        log = self.folder / str(self.count)
        for suffix in (".out", ".err"):
            log.with_suffix(suffix).touch()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "code": code,
            "drawn": drawn,
            "cwd": cwd and str(cwd),
            "environment": environment or {},
            "log": str(log),
            "largest_file": largest_file,
            "die_at_write": die_at_write and (die_at_write[0], str(die_at_write[1])),
        }
        return Started(self, self.ask({"start": request}), log)

    def run(self, *arguments: object, **settings: Any) -> Started:
        """Runs `ldmae ARGUMENTS…` to its end, which must be a good one; settings as of `start`."""
        started = self.start(*arguments, **settings)
        finish(started)
        return started

    def start_two(
        self, *arguments: object, own: tuple[tuple[object, ...], ...] = ((), ()), **settings: Any
    ) -> list[Started]:
        """Starts two processes that know of each other, as a launcher does.

        Args:
            arguments: of both.
            own: further arguments of each.
            settings: as of `start`.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common |= {"ACCELERATE_USE_CPU": "true"} | settings.pop("environment", {})
        return [
            self.start(*arguments, *more, environment=common | {"RANK": rank, "LOCAL_RANK": rank}, **settings)
            for rank, more in zip("01", own, strict=True)
        ]

    def close(self) -> None:
        """Ends the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def finish(*started: Started) -> None:
    """Waits until all are done, without a failure."""
    for process in started:
        assert process.wait() == 0, process.output


def kill_once(there: Path, *started: Started) -> None:
    """Kills processes by SIGKILL as soon as a file is there."""
    while not there.exists():
        assert all(process.poll() is None for process in started), started[0].output
        time.sleep(0.001)
    for process in started:
        process.kill()
    assert {process.wait() for process in started} == {-9}, started[0].output


def environment() -> dict[str, str]:
    """Returns the variables under which programs are started: one thread, as bitwise comparison needs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}
