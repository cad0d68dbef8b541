"""Builds wheel and sdist, looks into both, and uses the wheel in an environment that has nothing else.

    .venv/bin/python .ci/check_wheel.py            # a few minutes: torch and all are installed anew

The environment is a fresh venv in a temporary folder: only what the wheel declares gets into it, so a missing
dependency fails here. `--keep FOLDER` leaves it there, for the next time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "ldmae"
LARGEST = 40 * 2**20
"""Bytes of the wheel; a model of at most 25 MB lies in it."""


def run(*command: str | Path, folder: Path) -> str:
    """Runs a command in a folder, prints what it prints, and returns it."""
    print("$", *command, flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed with {done.returncode}: {' '.join(map(str, command))}")
    print(done.stdout[-1500:].rstrip(), flush=True)
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """Builds wheel and sdist, the wheel from the sdist."""
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, folder=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def check_wheel(wheel: Path) -> None:
    """Fails where the wheel lacks a file of the package, or has one of another."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    info = metadata.partition("/")[0]
    expected = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not _ignored(path)
    }
    problems = {
        "lacks": sorted(expected - names),
        "holds beyond the package": sorted(n for n in names - expected if not n.startswith(f"{info}/")),
        "lacks the licence": [] if f"{info}/licenses/LICENSE" in names else ["LICENSE"],
        "lacks the command": [] if f"{info}/entry_points.txt" in names else ["entry_points.txt"],
        "lacks presets or templates": [
            kind for kind in (".yaml", ".j2") if not any(name.endswith(kind) for name in names)
        ],
        "lacks a model's weights": [] if any(n.endswith(".safetensors") for n in names) else ["shipped/"],
        "is too large": [str(wheel.stat().st_size)] if wheel.stat().st_size > LARGEST else [],
        "says another licence": [] if "License-Expression: Apache-2.0" in text else ["METADATA"],
    }
    _fail(wheel, problems)
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 2**20:.1f} MiB")


def check_sdist(sdist: Path) -> None:
    """Fails where the sdist lacks what a build needs, or holds what a working tree has beside the project."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("LICENSE", "README.md", "pyproject.toml", "src/ldmae/config/presets/smoke.yaml", "CHANGELOG.md")
    strays = ("runs/", "results/", "site/", ".venv/", "dist/")
    problems = {
        "lacks": [name for name in wanted if name not in names],
        "holds": [name for name in names if name.startswith(strays)],
    }
    _fail(sdist, problems)
    print(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size / 2**20:.1f} MiB")


def _ignored(path: Path) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


def _fail(file: Path, problems: dict[str, list[str]]) -> None:
    found = [f"{what}: {', '.join(names[:8])}" for what, names in problems.items() if names]
    if found:
        sys.exit(f"{file.name} " + "; ".join(found))


def use(wheel: Path, folder: Path) -> None:
    """Installs the wheel in a new environment and runs it there, away from the sources."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--clear", environment, folder=folder)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    # --no-compile: of all that comes along, little is imported here
    run(binaries / "python", "-m", "pip", "install", "--quiet", "--no-compile", wheel, folder=folder)
    run(binaries / "python", "-m", "pip", "check", folder=folder)
    where = run(binaries / "python", "-c", "import ldmae; print(ldmae.__file__)", folder=folder)
    if str(environment) not in where:
        sys.exit(f"another ldmae was imported: {where}")
    ldmae = binaries / "ldmae"
    run(ldmae, "--version", folder=folder)
    if "smoke" not in run(ldmae, "presets", folder=folder):
        sys.exit("`ldmae presets` does not list smoke")
    if "PFLOP" not in run(ldmae, "run", "smoke", "--dry-run", folder=folder):
        sys.exit("`ldmae run smoke --dry-run` does not count")
    out = folder / "pretrained"
    for source in ("pretrained:emoji", "pretrained:emoji-three"):
        run(ldmae, "sample", source, "--count", "1", "--steps", "10", "--out", out, folder=folder)
        if not list(out.rglob("*.png")):
            sys.exit(f"`ldmae sample {source}` left no picture in {out}")


def main() -> None:
    """Builds, checks and uses the wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        dist = Path(tempfile.mkdtemp(dir=folder))
        wheel, sdist = build(dist)
        check_wheel(wheel)
        check_sdist(sdist)
        use(wheel, folder)
    print("the wheel holds what it should, and runs in an environment of its own")


if __name__ == "__main__":
    main()
