"""What diffusers' `AutoModel` loads the parts of a saved pipeline with."""

from __future__ import annotations

import importlib
from typing import Any

from diffusers.configuration_utils import ConfigMixin

from ldmae.core.errors import UserError
from ldmae.core.saving import PLACES


class AnyModel(ConfigMixin):
    """Loads a model by the class that its config names: one of this package, or of diffusers."""

    config_name = "config.json"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Loads a model as the `from_pretrained` of its class does.

        Args:
            pretrained_model_name_or_path: a folder or Hub name.
            kwargs: as diffusers' models take them, such as `subfolder="vae"`.

        Raises:
            UserError: its config names no class, or one that neither this package nor diffusers has.
        """
        config: Any = cls.load_config(pretrained_model_name_or_path, **kwargs)
        name = config.get("_class_name")
        if not isinstance(name, str):
            raise UserError(
                f"{pretrained_model_name_or_path} has no _class_name in its config.json; load it by its class"
            )
        module = importlib.import_module(PLACES.get(name, "diffusers"))
        kind = getattr(module, name, None)
        if kind is None:
            raise UserError(
                f"{pretrained_model_name_or_path} holds a model of the class {name}, which neither "
                "ldmae nor diffusers has; load it by its own class"
            )
        return kind.from_pretrained(pretrained_model_name_or_path, **kwargs)
