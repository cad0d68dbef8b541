"""The official checkpoints' keys and ours, both ways."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmae.conversion.lightningdit import load_official_lightningdit
    from ldmae.conversion.vmae import load_official_vmae

__all__ = ["load_official_lightningdit", "load_official_vmae"]

_HOMES = {
    "load_official_lightningdit": "ldmae.conversion.lightningdit",
    "load_official_vmae": "ldmae.conversion.vmae",
}


def __getattr__(name: str) -> Any:  # imported on first use: import ldmae stays fast
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
