import pytest

from ldmae.perception.lpips import load_perceptual


@pytest.fixture(scope="session")
def perceptual():
    return load_perceptual("st-lpips-alex")
