import math

import pytest
import torch

from ldmae.core.positions import sincos_2d


def test_columns_come_first_then_rows_each_sine_then_cosine():
    width, height, columns = 8, 2, 3
    table = sincos_2d(width, height, columns)
    for row in range(height):
        for column in range(columns):
            expected = [
                f(place / 10000 ** (i / 2))
                for place in (column, row)
                for f in (math.sin, math.cos)
                for i in (0, 1)
            ]
            torch.testing.assert_close(table[row * columns + column], torch.tensor(expected))


def test_table_equals_diffusers_table():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    reference = embeddings.get_2d_sincos_pos_embed(24, 5, output_type="pt", base_size=5)
    torch.testing.assert_close(sincos_2d(24, 5, 5).double(), reference.double(), atol=1e-6, rtol=0)


def test_table_comes_in_default_dtype_unless_told():
    assert sincos_2d(4, 2, 2).dtype == torch.float32
    assert sincos_2d(4, 2, 2, dtype=torch.bfloat16).dtype == torch.bfloat16
    torch.set_default_dtype(torch.float16)
    try:
        assert sincos_2d(4, 2, 2).dtype == torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


def test_table_follows_the_default_device():
    with torch.device("meta"):
        assert sincos_2d(4, 2, 2).is_meta


def test_width_that_four_does_not_divide_is_a_programmers_mistake():
    with pytest.raises(AssertionError, match="4 divides"):
        sincos_2d(6, 2, 2)
