import dataclasses

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from ldmae.evaluation.settings import EvaluationConfig


def test_settings_go_through_omegaconf_and_unknown_keys_fail():
    schema = OmegaConf.structured(EvaluationConfig)
    merged = OmegaConf.to_object(OmegaConf.merge(schema, {"samples": 50, "guidance_scale": 2.5}))
    assert merged == EvaluationConfig(samples=50, guidance_scale=2.5)
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"sample": 50})
    with pytest.raises(dataclasses.FrozenInstanceError):
        merged.samples = 1
