"""Settings of components: they agree with the classes that they build."""

import inspect
from typing import get_args

import pytest

from ldmae.config.autoencoder import MaskedObjectiveConfig, VMAEConfig
from ldmae.config.base import Settings
from ldmae.config.diffusion import LightningDiTConfig
from ldmae.config.evaluation import EvaluationConfig
from ldmae.config.registry import DIFFUSION, SOLVERS, SOURCES, own_settings, resolve
from ldmae.config.training import OptimizerConfig, TrainingConfig
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


class Grouped:
    """A component with a group of settings that has defaults of its own."""

    class Config(Settings):
        """Its settings."""

        training: TrainingConfig = TrainingConfig(steps=7, optimizer=OptimizerConfig(learning_rate=0.5))


@pytest.mark.parametrize(
    ("options", "steps", "rate"),
    [
        ({}, 7, 0.5),
        ({"steps": 3}, 3, 0.5),
        ({"optimizer": {"weight_decay": 0.1}}, 7, 0.5),
        ({"optimizer": {"learning_rate": 0.1}}, 7, 0.1),
    ],
)
def test_options_of_a_group_leave_the_others_as_the_component_has_them(options, steps, rate):
    training = own_settings(Grouped, {"training": options}, "autoencoder.options", ()).training
    assert (training.steps, training.optimizer.learning_rate) == (steps, rate)
    with pytest.raises(UserError, match=r"did you mean 'autoencoder\.options\.training\.steps'"):
        own_settings(Grouped, {"training": {"step": 3}}, "autoencoder.options", ())


class OfUnknownTypes:
    """Takes what no setting can be."""

    def __init__(self, model: "Missing", width: int = 3) -> None:  # noqa: F821  # pyright: ignore
        ...


def test_a_component_whose_arguments_cannot_be_settings_is_told_to_declare_them():
    with pytest.raises(UserError, match=r"OfUnknownTypes can't be settings .*Missing.*`Config`"):
        own_settings(OfUnknownTypes, {}, "diffusion.options", ())
