import importlib.util

import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.perception.features import load_efficientnet
from ldmae.perception.spatial import load_spatial_features


def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_features_lie_on_the_grid_asked_for_and_are_the_networks_own():
    features = load_spatial_features("efficientnet_lite0")
    x = images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = features(x, (4, 6))
    assert found.shape == (2, features.channels, 4, 6)
    assert not found.requires_grad
    resized = torch.nn.functional.interpolate(x.detach(), (64, 96), mode="bicubic", antialias=True)
    pixels = ((resized + 1) * 127.5).clamp(0, 255)
    _, whole = load_efficientnet("efficientnet_lite0").pooled_and_middle(pixels)
    torch.testing.assert_close(found, whole)


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"no network for spatial features 'dinov2'.*dinov2-small"):
        load_spatial_features("dinov2")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_dinov2_without_its_package_says_what_to_install():
    with pytest.raises(UserError, match="needs the package transformers; type: pip install transformers"):
        load_spatial_features("dinov2-small")


def test_dinov2_gives_its_patch_tokens_in_their_places(tmp_path):
    transformers = pytest.importorskip("transformers")
    from ldmae.perception.spatial import _load_dinov2

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    features = _load_dinov2("dinov2-small", str(tmp_path))
    found = features(images(), (2, 3))
    assert found.shape == (2, 8, 2, 3)
    resized = torch.nn.functional.interpolate(images(), (28, 42), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = model((((resized + 1) / 2).clamp(0, 1) - mean) / std).last_hidden_state
    torch.testing.assert_close(found[1, :, 1, 2], tokens[1, 1 + 5])
    with pytest.raises(UserError, match=r"could not be downloaded.*HF_HOME"):
        _load_dinov2("dinov2-small", str(tmp_path / "none"))
