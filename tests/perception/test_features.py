from urllib.error import URLError

import pytest
import skimage.data
import torch

from ldmae.core.errors import UserError
from ldmae.perception.features import LABELS, load_features


@pytest.fixture(scope="module")
def lite0():
    return load_features("efficientnet_lite0")


def photo(name):
    image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)
    side = min(image.shape[1:])
    top, left = ((size - side) // 2 for size in image.shape[1:])
    return image[None, :, top : top + side, left : left + side].contiguous()


# Indices into ImageNet's 1000 classes
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee", {967}),  # espresso
        ("rocket", {657, 744}),  # missile, projectile
    ],
)
def test_efficientnet_recognises_photographs(lite0, name, wanted):
    logits = lite0.features_and_logits(photo(name))[1][0]
    top = logits.topk(5).indices.tolist()
    assert top[0] in wanted
    assert wanted <= set(top)


def test_features_do_not_depend_on_the_batch(lite0):
    images = torch.randint(0, 256, (8, 3, 48, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    together = lite0(images)
    assert together.shape == (8, lite0.dimensions)
    assert together.dtype == torch.float32
    alone = lite0.extract(images.split(1))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, lite0(images))


def test_features_ignore_the_callers_autocast(lite0):
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    expected = lite0(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lite0(images), expected)


def test_images_must_be_uint8(lite0):
    with pytest.raises(AssertionError, match="uint8"):
        lite0(torch.zeros(1, 3, 32, 32))


def test_no_batches_give_no_features(lite0):
    assert lite0.extract([]).shape == (0, 1280)


def test_only_inception_bears_the_literatures_names(lite0):
    assert (lite0.kid_label, lite0.fd_label) == ("KID-efficientnet_lite0", "FD-efficientnet_lite0")
    assert LABELS["inception"] == ("KID", "FID")


def test_unknown_features_propose_the_nearest():
    with pytest.raises(UserError, match="did you mean 'inception'"):
        load_features("inceptionv3")


def test_missing_inception_names_file_and_offline_features(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as error:
        load_features("inception")
    assert str(tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in str(error.value)
    assert "efficientnet_lite0" in str(error.value)


def test_inception_gives_torch_fidelitys_features(monkeypatch, tmp_path):
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    # Random weights in the place of the real file: what is tested is the way there
    path = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        for name in ("kaiming_normal_", "kaiming_uniform_"):
            patch.setattr(torch.nn.init, name, lambda t, **k: t.data.normal_(std=0.05))
        reference = inception.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    torch.save(reference.state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    extractor = load_features("inception")
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    features, logits = extractor.features_and_logits(images)
    expected = reference(images)
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(logits, expected[1])
    assert extractor.dimensions == features.shape[1]
