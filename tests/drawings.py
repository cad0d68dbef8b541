"""Reports without their drawings."""

import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ldmae.report import comparison, grids


def leave_blank(patch: pytest.MonkeyPatch) -> None:
    """Leaves plots and pictures of reports blank: drawing them takes most of a report's time."""

    def save_blank(_: Figure, file: io.BytesIO | Path, **__: object) -> None:
        file.touch() if isinstance(file, Path) else file.write(b"<svg/>")

    patch.setattr(Figure, "savefig", save_blank)
    patch.setattr(grids, "_encoded", lambda *_, **__: b"blank")
    patch.setattr(comparison, "save_png", lambda _, path: path.touch())


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves reports blank, for tests of what they say; a test that looks at drawings undoes it."""
    leave_blank(monkeypatch)
