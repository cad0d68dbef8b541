"""What a saved folder needs so that diffusers loads it in a process that never imported this package.

Of custom classes diffusers imports what a folder holds as code, with `trust_remote_code=True`. The code in
each folder is one small file, `pipeline.py`, which takes the classes from the installed package. This
package's own classes never run it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers.configuration_utils import ConfigMixin as _Config
else:
    _Config = object

_MODULE = "pipeline"
"""The file's name, without its ending."""
_CODE = '''"""The classes of this folder: they are those of the package ldmae."""

try:
    import ldmae
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "this model needs the package ldmae, which is not installed; in a clone of it type: pip install ."
    ) from error

AnyModel = ldmae.AnyModel
AutoencoderVMAE = ldmae.AutoencoderVMAE
LDMAEPipeline = ldmae.LDMAEPipeline
LightningDiTTransformer2DModel = ldmae.LightningDiTTransformer2DModel
OwnAutoencoder = ldmae.OwnAutoencoder
'''
"""The same in every folder, for diffusers copies those of all local folders to one path."""
PLACES = {
    "AutoencoderVMAE": "ldmae.autoencoders.vmae",
    "LightningDiTTransformer2DModel": "ldmae.diffusion.lightningdit",
    "OwnAutoencoder": "ldmae.diffusion.own_autoencoder",
}
"""Where the classes of a pipeline's parts are."""


def _is_own(kind: type) -> bool:
    """Says whether a class is one of this package, and not one that extends it elsewhere."""
    return kind.__module__.startswith("ldmae.")


class SavedModel(_Config):
    """Mixed into a diffusers model, first: saves what `AutoModel` finds its class by."""

    auto_class = ""
    """What `AutoModel` loads a subfolder with; empty: this class."""

    def to_json_string(self) -> str:
        """Returns the config, or what `model_index.json` holds, as JSON; it says where the classes are."""
        saved = json.loads(super().to_json_string())
        if _is_own(type(self)):
            self._locate_classes(saved)
        return json.dumps(saved, indent=2, sort_keys=True) + "\n"

    def _locate_classes(self, saved: dict[str, Any]) -> None:
        saved["auto_map"] = {"AutoModel": f"{_MODULE}.{self.auto_class or type(self).__name__}"}

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes the config, and the code that diffusers imports, as `ConfigMixin.save_config` does."""
        super().save_config(save_directory)
        if _is_own(type(self)):
            self._write_code(Path(save_directory))
        if push_to_hub:
            super().save_config(save_directory, push_to_hub=True, **kwargs)

    def _write_code(self, folder: Path) -> None:
        (folder / f"{_MODULE}.py").write_text(_CODE, encoding="utf-8")

    @classmethod
    def extract_init_dict(cls, config_dict: Any, **kwargs: Any) -> Any:
        """Returns the constructor's arguments in a config; where the class is, is none of them."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)


class SavedPipeline(SavedModel):
    """Mixed into a diffusers pipeline, first: saves what diffusers finds it and its parts by."""

    auto_class = "AnyModel"  # diffusers asks the pipeline's config, and not the subfolder's

    def _locate_classes(self, saved: dict[str, Any]) -> None:
        super()._locate_classes(saved)
        saved["_class_name"] = [_MODULE, type(self).__name__]
        for name, part in saved.items():
            if isinstance(part, list) and (*reversed(part),) in PLACES.items():
                saved[name] = [_MODULE, part[1]]

    def _write_code(self, folder: Path) -> None:
        super()._write_code(folder)
        for config in folder.glob("*/config.json"):  # of models, those of diffusers too
            super()._write_code(config.parent)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any, **kwargs: Any) -> Any:
        """Reads a config; diffusers is to take this class, and not the one that the folder's code gives."""
        config = super()._dict_from_json_file(json_file, **kwargs)
        own = [[_MODULE, kind.__name__] for kind in cls.__mro__ if _is_own(kind)]  # it may extend ours
        if isinstance(config, dict) and config.get("_class_name") in own:
            config["_class_name"] = cls.__name__
        return config

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Returns the config of a saved pipeline, in which its classes are this package's."""
        config: Any = super().load_config(*args, **kwargs)
        for name, part in config.items() if isinstance(config, dict) else ():
            if isinstance(part, list) and len(part) == 2 and part[0] == _MODULE and part[1] in PLACES:
                config[name] = [PLACES[part[1]], part[1]]
        return config
