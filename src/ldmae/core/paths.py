"""Paths as users type them."""

import re
from pathlib import Path


def at_home(text: str) -> str:
    """Returns a path, a setting or a list of them with each `~/` as the user's folder, as a shell has it."""
    return re.sub(r"(^|[=,\[{(:'\"])~(?=/|$)", lambda match: match[1] + str(Path.home()), text)
