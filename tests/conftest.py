"""What tests of several folders need."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .drawings import blank  # noqa: F401 - a fixture
from .processes import Server
from .small_features import small_features  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LONGEST = ("test_shipped.py", "run", "app", "examples", "report", "training")
"""Files and folders that take longest: last, one would keep one process busy while others idle."""
MEMORY = Path("/dev/shm")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_configure() -> None:
    """Hears Ctrl+C, to which a shell makes background jobs deaf, and keeps files in memory where it can.

    Every file that matters is synced when it is written, which takes a disk milliseconds.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files and folders first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, order.get(item.path.parent.name, len(order))))


def pytest_collection_finish() -> None:
    """Spares collections of garbage, which every training makes, all that was imported."""
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts `ldmae` in processes of its own; its imports are made once."""
    opened = Server(tmp_path_factory.mktemp("logs"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def ldmae(server: Server) -> Server:
    """Starts `ldmae`."""
    return server


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Debian's chromium, driven by Playwright; without one its tests skip, and fail where CI=true."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"none of {', '.join(BROWSERS)} is installed; apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
