"""What a command takes before it computes anything, beside `import torch`, each in a process of its own.

Usage: python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
from functools import partial

from _timing import machine, side_by_side

LDMAE = [sys.executable, "-m", "ldmae"]
PYTHON = [sys.executable, "-c"]
BASELINE = "import torch"
COMMANDS = {
    BASELINE: [*PYTHON, "import torch"],
    "import ldmae": [*PYTHON, "import ldmae"],
    "ldmae presets": [*LDMAE, "presets"],
    "ldmae schema": [*LDMAE, "schema"],
    "ldmae --help": [*LDMAE, "--help"],
    "ldmae run --help": [*LDMAE, "run", "--help"],
    "ldmae run emoji, a setting mistyped": [*LDMAE, "run", "emoji", "image_sise=64"],
    "from ldmae import AutoencoderVMAE": [*PYTHON, "from ldmae import AutoencoderVMAE"],
}
MISTYPED = 2
"""Exit code of a command with a setting that does not exist."""


def start(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, MISTYPED), done.stderr


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    seconds = side_by_side({name: partial(start, command) for name, command in COMMANDS.items()}, turns=7)
    print(f"{machine()}; medians of 7 turns, files in the page cache\n")
    print("| process | seconds | of `import torch` |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| `{name}` | {value:.2f} | {value / seconds[BASELINE]:.2f} |")


if __name__ == "__main__":
    main()
