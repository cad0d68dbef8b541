"""The official checkpoints' keys and ours, both ways."""

from ldmae.conversion.lightningdit import load_official_lightningdit
from ldmae.conversion.vmae import load_official_vmae

__all__ = ["load_official_lightningdit", "load_official_vmae"]
