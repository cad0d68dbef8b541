"""The official checkpoints' keys and ours, both ways."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmae.conversion.lightningdit import load_official_lightningdit
    from ldmae.conversion.vmae import load_official_vmae

__all__ = ["load_official_lightningdit", "load_official_vmae"]


def __getattr__(name: str) -> Any:  # imported on first use: import ldmae stays fast
    if name in __all__:
        module = name.removeprefix("load_official_")
        return getattr(importlib.import_module(f"ldmae.conversion.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
