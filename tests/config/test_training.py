"""Settings of the training loop are checked where they are made."""

import math

import pytest

from ldmae.config.training import CHANGES_NO_WEIGHT, CheckpointConfig, OptimizerConfig, TrainingConfig
from ldmae.core.errors import UserError


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "optimizer.learning_rate"),
        (OptimizerConfig, {"learning_rate": math.nan}, "optimizer.learning_rate"),
        (OptimizerConfig, {"betas": [0.9]}, "optimizer.betas"),
        (OptimizerConfig, {"betas": [0.9, 1.0]}, "optimizer.betas"),
        (OptimizerConfig, {"discriminator_betas": [0.9, -0.1]}, "optimizer.discriminator_betas"),
        (OptimizerConfig, {"discriminator_learning_rate": 0.0}, "optimizer.discriminator_learning_rate"),
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


@pytest.mark.parametrize(("steps", "warmup", "end"), [(11, 0, 10), (100, 5, 99), (8, 10, 10), (1, 3, 2)])
def test_a_cosine_that_ends_before_the_training_or_its_warm_up_is_refused(steps, warmup, end):
    cosine = OptimizerConfig(schedule="cosine", warmup_steps=warmup, schedule_steps=end)
    expected = f"at least training.steps={steps} and above .*warmup_steps={warmup}, got {end}; .* null"
    with pytest.raises(UserError, match=f"training.optimizer.schedule_steps must be {expected}"):
        TrainingConfig(steps=steps, optimizer=cosine)


def test_a_cosine_may_end_with_the_training_or_after_it_and_a_constant_rate_has_no_end():
    for optimizer in (
        {"schedule": "cosine", "warmup_steps": 9, "schedule_steps": 10},
        {"schedule": "cosine", "schedule_steps": 100},
        {"schedule": "cosine", "warmup_steps": 20},  # its last step moves with the training's
        {"schedule": "constant", "schedule_steps": 5},
    ):
        TrainingConfig(steps=10, optimizer=OptimizerConfig(**optimizer))


def test_keys_that_change_no_weight_are_keys():
    assert set(TrainingConfig.model_fields) > CHANGES_NO_WEIGHT
    assert not CHANGES_NO_WEIGHT & {"batch_size", "ema_decay", "optimizer"}
