import math

import pytest

from ldmae.config.evaluation import EvaluationConfig
from ldmae.core.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": "inceptoin"}, "features must be .* got 'inceptoin'; did you mean 'inception'"),
        ({"perceptual": "lpipz"}, "perceptual must be .* got 'lpipz'"),
        ({"epsilons": [0.1, 0.1]}, "epsilons must be distinct numbers"),
        ({"epsilons": [-0.1]}, r"evaluation.epsilons\[0\] must be at least 0, got -0.1"),
        ({"epsilons": [math.nan]}, r"epsilons\[0\] must be a finite number"),
        ({"fractions": [0.5, 2.0]}, r"fractions\[1\] must be at most 1"),
        ({"fractions": []}, "fractions must have at least 1 item"),
        ({"samples": 0}, "evaluation.samples must be at least 1"),
        ({"real_images": 0}, "evaluation.real_images must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_door(wrong, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**wrong)
