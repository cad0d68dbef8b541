"""Settings of the training loop are checked where they are made."""

import math

import pytest

from ldmae.core.errors import UserError
from ldmae.training.settings import CHANGES_NO_WEIGHT, CheckpointConfig, OptimizerConfig, TrainingConfig


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "optimizer.learning_rate"),
        (OptimizerConfig, {"learning_rate": math.nan}, "optimizer.learning_rate"),
        (OptimizerConfig, {"betas": [0.9]}, "optimizer.betas"),
        (OptimizerConfig, {"betas": [0.9, 1.0]}, "optimizer.betas"),
        (OptimizerConfig, {"adversary_betas": [0.9, -0.1]}, "optimizer.adversary_betas"),
        (OptimizerConfig, {"adversary_learning_rate": 0.0}, "optimizer.adversary_learning_rate"),
        (OptimizerConfig, {"schedule": "linear"}, "optimizer.schedule must be constant or cosine"),
        (OptimizerConfig, {"weight_decay": -0.1}, "optimizer.weight_decay"),
        (OptimizerConfig, {"warmup_steps": -1}, "optimizer.warmup_steps"),
        (OptimizerConfig, {"schedule_steps": -5}, "optimizer.schedule_steps"),
        (OptimizerConfig, {"gradient_clip": 0.0}, "optimizer.gradient_clip"),
        (CheckpointConfig, {"every_steps": 0}, "checkpoint.every_steps"),
        (CheckpointConfig, {"keep_every": 0}, "checkpoint.keep_every"),
        (TrainingConfig, {"steps": 0}, "training.steps"),
        (TrainingConfig, {"batch_size": 0}, "training.batch_size"),
        (TrainingConfig, {"micro_batch_size": 0}, "training.micro_batch_size"),
        (TrainingConfig, {"ema_decay": 1.0}, "training.ema_decay"),
        (TrainingConfig, {"num_workers": -1}, "training.num_workers"),
        (TrainingConfig, {"log_every": 0}, "training.log_every"),
        (TrainingConfig, {"validate_every": -1}, "training.validate_every"),
        (TrainingConfig, {"validation_images": 0}, "training.validation_images"),
    ],
)
def test_an_impossible_value_is_refused_by_name_with_what_was_got(kind, settings, names):
    with pytest.raises(UserError, match=f"{names}.*got"):
        kind(**settings)


def test_keys_that_change_no_weight_are_keys():
    assert set(TrainingConfig.__dataclass_fields__) > CHANGES_NO_WEIGHT
    assert not CHANGES_NO_WEIGHT & {"batch_size", "ema_decay", "optimizer"}
