import dataclasses
import math

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from ldmae.core.errors import UserError
from ldmae.evaluation.settings import EvaluationConfig


def test_settings_go_through_omegaconf_and_unknown_keys_fail():
    schema = OmegaConf.structured(EvaluationConfig)
    merged = OmegaConf.to_object(OmegaConf.merge(schema, {"samples": 50, "guidance_scale": 2.5}))
    assert merged == EvaluationConfig(samples=50, guidance_scale=2.5)
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"sample": 50})
    with pytest.raises(dataclasses.FrozenInstanceError):
        merged.samples = 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": "inceptoin"}, "'inceptoin' is unknown; did you mean 'inception'"),
        ({"epsilons": [0.1, 0.1]}, "epsilons must be distinct numbers"),
        ({"epsilons": [-0.1]}, "epsilons must be at least 0"),
        ({"epsilons": [math.nan]}, "epsilons must be a number"),
        ({"fractions": [0.5, 2.0]}, "fractions must be at most 1"),
        ({"fractions": []}, "fractions must be distinct numbers"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_door(wrong, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**wrong)
