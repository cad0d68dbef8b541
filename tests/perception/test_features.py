from urllib.error import URLError

import pytest
import skimage.data
import torch

from ldmae.core.errors import UserError
from ldmae.perception.features import Features, load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.perception.names import FEATURES


@pytest.fixture(scope="module")
def lite0():
    return load_features("efficientnet_lite0")


def random_images(count, size=(48, 32)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.manual_seed(0))


def photo(name):
    image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)
    side = min(image.shape[1:])
    top, left = ((size - side) // 2 for size in image.shape[1:])
    return image[None, :, top : top + side, left : left + side].contiguous()


@pytest.fixture(scope="module")
def lite2():
    return load_features("efficientnet_lite2")


# Indices into ImageNet's 1000 classes
@pytest.mark.parametrize(
    ("network", "name", "wanted"),
    [
        ("lite0", "chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("lite0", "coffee", {967}),  # espresso
        ("lite0", "rocket", {657, 744}),  # missile, projectile
        ("lite2", "chelsea", {281, 282, 285}),
        ("lite2", "coffee", {967}),
    ],
)
def test_efficientnet_recognises_photographs(request, network, name, wanted):
    logits = request.getfixturevalue(network).measure(photo(name)).logits[0]
    top = logits.topk(5).indices.tolist()
    assert top[0] in wanted
    assert wanted <= set(top)


def test_features_do_not_depend_on_the_batch(lite0):
    images = random_images(8)
    together = lite0(images)
    assert together.shape == (8, lite0.dimensions)
    assert together.dtype == torch.float32
    alone = torch.cat([lite0(image) for image in images.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, lite0(images))


def test_features_ignore_the_callers_autocast(lite0):
    images = random_images(1, (32, 32))
    expected = lite0(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lite0(images), expected)


def test_images_must_be_uint8(lite0):
    with pytest.raises(AssertionError, match="uint8"):
        lite0(torch.zeros(1, 3, 32, 32))


def test_one_pass_gives_pooled_and_spatial_features_and_logits(lite0):
    images = random_images(2)
    middle = []
    hook = lite0._network.blocks[8].register_forward_hook(lambda *call: middle.append(call[-1]))
    features = lite0.measure(images)
    hook.remove()
    assert len(middle) == 1
    assert torch.equal(features.pooled, lite0(images))
    assert features.spatial.shape == (2, lite0.spatial_dimensions) == (2, 14 * 14 * 7)
    torch.testing.assert_close(features.spatial.view(2, 14, 14, 7)[1, 3, 5], middle[0][1, :7, 3, 5])


def test_all_features_of_batches_are_joined_in_order(lite0):
    images = random_images(3)
    joined = Features.join([lite0.none(), *(lite0.measure(batch) for batch in images.split(2))])
    assert len(joined) == 3
    for kind in ("pooled", "spatial", "logits"):
        whole = getattr(lite0.measure(images), kind)
        torch.testing.assert_close(getattr(joined, kind), whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(getattr(joined.select(torch.tensor([2, 0])), kind), getattr(joined, kind)[[2, 0]])
    empty = lite0.none()
    assert (empty.pooled.shape, empty.spatial.shape, empty.logits.shape) == ((0, 1280), (0, 1372), (0, 1000))


def test_features_of_different_networks_are_not_joined(lite0):
    other = Features("inception", *(torch.empty(0, size) for size in (1280, 1372, 1000)))
    with pytest.raises(AssertionError, match="one network"):
        Features.join([lite0.none(), other])


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9 has one way alone")
@pytest.mark.parametrize("newer", [False, True])
def test_the_callers_matmul_precision_is_neither_used_nor_lost(lite0, newer):
    used, products = [], torch.backends.mkldnn.matmul
    watch = lite0._network.blocks[0].register_forward_hook(lambda *_: used.append(products.fp32_precision))
    if newer:  # once it was used, torch.get_float32_matmul_precision raises
        products.fp32_precision = "bf16"
    else:
        torch.set_float32_matmul_precision("high")
    before = products.fp32_precision
    try:
        lite0(random_images(1))
        assert products.fp32_precision == before
        assert newer or torch.get_float32_matmul_precision() == "high"
    finally:
        products.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        watch.remove()
    assert used == ["ieee"]


def test_a_fingerprint_follows_the_weights(lite0):
    other = load_features("efficientnet_lite0")
    assert other.fingerprint() == lite0.fingerprint()
    next(other._network.buffers()).add_(1e-3)
    assert other.fingerprint() != lite0.fingerprint()


def test_convolutions_of_stride_2_pad_as_tensorflow_does_at_odd_sizes_too(lite2):
    # of Lite2 at 260 px: 130, 65, 33, 17, 9; the reference's `same` padding by its own formula
    convolution = lite2._network.blocks[lite2._network.variant.middle_block + 4].depthwise
    assert convolution.stride == 2
    x = torch.randn(1, convolution.groups, 17, 17, generator=torch.manual_seed(0))
    total = (-(-17 // 2) - 1) * 2 + convolution.kernel - 17
    padded = torch.nn.functional.pad(x, [total // 2, total - total // 2] * 2)
    expected = torch.nn.functional.conv2d(
        padded, convolution.weight, convolution.bias, stride=2, groups=convolution.groups
    )
    torch.testing.assert_close(convolution(x), expected)
    assert lite2.measure(random_images(1)).spatial.shape == (1, 17 * 17 * 7)


def test_only_inception_bears_the_literatures_names(lite0):
    assert (lite0.labels.kid, lite0.labels.fd) == ("KID-efficientnet_lite0", "FD-efficientnet_lite0")
    assert all(name.endswith("-efficientnet_lite0") for name in lite0.labels)
    assert FEATURES["inception"] == ("KID", "FID", "sFID", "IS", "precision", "recall", "MIND")


def test_unknown_features_propose_the_nearest():
    with pytest.raises(UserError, match="did you mean 'inception'"):
        load_features("inceptionv3")


@pytest.mark.parametrize(
    ("load", "name", "file", "offline"),
    [
        (load_features, "inception", "weights-inception-2015-12-05-6726825d.pth", "efficientnet_lite0"),
        (load_perceptual, "lpips-vgg", "vgg16-397923af.pth", "st-lpips-alex"),
    ],
)
def test_missing_weights_name_file_and_offline_networks(monkeypatch, tmp_path, load, name, file, offline):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as error:
        load(name)
    assert str(tmp_path / "checkpoints" / file) in str(error.value)
    assert offline in str(error.value)


@pytest.fixture(scope="module")
def inception_pair(tmp_path_factory):
    """Inception of random weights in the place of the real file, by ours and by torch-fidelity."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    hub = tmp_path_factory.mktemp("hub")
    path = hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        for name in ("kaiming_normal_", "kaiming_uniform_"):
            patch.setattr(torch.nn.init, name, lambda t, **k: t.data.normal_(std=0.05))
        reference = inception.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    torch.save(reference.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(hub))
        return load_features("inception"), reference


def test_inception_gives_torch_fidelitys_features_and_adms_spatial_ones(inception_pair):
    extractor, reference = inception_pair
    # ADM reads `mixed_6/conv`: the 1 x 1 branch, after its ReLU, of what torch-fidelity calls Mixed_6d
    branch = []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda *call: branch.append(call[-1].clone()))
    images = random_images(2)
    features = extractor.measure(images)
    pooled, logits = reference(images)
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.logits, logits)
    assert (extractor.dimensions, extractor.classes) == (pooled.shape[1], logits.shape[1]) == (2048, 1008)
    # TensorFlow flattens (17, 17, channels), which ADM's statistics are ordered by
    expected = branch[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    assert expected.shape == (2, 2023) == (2, extractor.spatial_dimensions)
    assert expected.std() > 0
    torch.testing.assert_close(features.spatial, expected)


def test_inceptions_softmax_leaves_the_classifiers_bias_out_as_adms_does(inception_pair):
    extractor, reference = inception_pair
    features = extractor.measure(random_images(2))
    assert reference.fc.bias.abs().max() > 0
    torch.testing.assert_close(features.logits, features.pooled @ reference.fc.weight.T)
