"""`make` on a machine where something is lacking."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """\
#!/bin/sh
# Debian's Python without the package python3-venv: it leaves half an environment
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin" && ln -sf "$0" "$3/bin/python" && echo "apt install python3-venv"
exit 1
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_an_environment_that_could_not_be_made_is_made_again_by_the_same_command(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(
            ["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "apt install python3-venv" in done.stdout
        assert not (tmp_path / ".venv" / "bin" / "python").exists()
