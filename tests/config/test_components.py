"""Settings of components: they agree with the classes that they build."""

import inspect
from typing import get_args

import pytest

from ldmae.config.autoencoder import MaskedObjectiveConfig, VMAEConfig
from ldmae.config.diffusion import LightningDiTConfig
from ldmae.config.evaluation import EvaluationConfig
from ldmae.config.registry import DIFFUSION, SOLVERS, SOURCES, own_settings, resolve
from ldmae.core.errors import UserError
from ldmae.perception.names import DISTANCES, FEATURES, SPATIAL


@pytest.mark.parametrize(
    ("settings", "component"),
    [(VMAEConfig, "ldmae.autoencoders.vmae:AutoencoderVMAE"), (LightningDiTConfig, "lightningdit")],
)
def test_a_model_takes_its_settings_and_has_the_same_defaults(settings, component):
    taken = inspect.signature(resolve(DIFFUSION, component)).parameters
    assert {name: field.default for name, field in settings.model_fields.items()} == {
        name: taken[name].default for name in settings.model_fields
    }


@pytest.mark.parametrize("registry", [DIFFUSION, SOLVERS, SOURCES])
def test_every_registered_component_is_there(registry):
    for name in registry:
        assert isinstance(resolve(registry, name), type)


def test_networks_of_perception_may_all_be_named():
    known = {
        (EvaluationConfig, "perceptual"): DISTANCES,
        (EvaluationConfig, "features"): FEATURES,
        (MaskedObjectiveConfig, "perceptual"): DISTANCES,
        (MaskedObjectiveConfig, "alignment"): SPATIAL,
    }
    for (settings, name), names in known.items():
        assert set(get_args(settings.model_fields[name].annotation)) == set(names)


class Own:
    """A component whose settings are its constructor's arguments."""

    def __init__(self, in_channels: int, width: int = 8, name: str | None = None):
        self.width = width


def test_settings_of_ones_own_component_follow_from_its_constructor():
    assert dict(own_settings(Own, {"width": 3}, "x.options", ("in_channels",))) == {"width": 3, "name": None}
    for options, message in (
        ({"widht": 3}, r"unknown setting x\.options\.widht; did you mean 'x\.options\.width'"),
        ({"width": "wide"}, r"x\.options\.width must be a valid integer.*got 'wide'"),
    ):
        with pytest.raises(UserError, match=message):
            own_settings(Own, options, "x.options", ("in_channels",))


class OfUnknownTypes:
    """Takes what no setting can be."""

    def __init__(self, model: "Missing", width: int = 3) -> None:  # noqa: F821  # pyright: ignore
        ...


def test_a_component_whose_arguments_cannot_be_settings_is_told_to_declare_them():
    with pytest.raises(UserError, match=r"OfUnknownTypes can't be settings .*Missing.*`Config`"):
        own_settings(OfUnknownTypes, {}, "diffusion.options", ())
