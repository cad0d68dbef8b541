import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldmae.core.errors import UserError
from ldmae.evaluation.distances import frechet_distance, frechet_of_statistics
from ldmae.evaluation.generation import generation_metrics
from ldmae.evaluation.image_sets import write_samples_npz
from ldmae.evaluation.references import (
    _write_reference,
    cached_reference,
    read_reference,
    reference_from_images,
)
from ldmae.perception.features import FeatureExtractor


class TinyNetwork(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.register_buffer("kernel", torch.randn(8, 3, 3, 3, generator=torch.manual_seed(seed)))
        self.register_buffer("classifier", torch.randn(8, 5, generator=torch.manual_seed(seed + 1)))

    def forward(self, images):
        x = F.conv2d(images / 255, self.kernel).relu()
        pooled = x.mean((2, 3))
        return pooled, F.adaptive_avg_pool2d(x, 2), pooled @ self.classifier


def extractor(name="efficientnet_lite0", seed=0):
    """A real extractor around a tiny network: D = 8, S = 7 · 2 · 2, K = 5."""
    network = TinyNetwork(seed)
    return FeatureExtractor(name, (8, 28, 5), network, network)


def images(count, seed=0, bright=256):
    # Each of its own brightness and shape, so that every covariance is regular
    source = torch.manual_seed(seed)
    scale = torch.rand(count, 3, 1, 1, generator=source)
    return (torch.rand(count, 3, 8, 8, generator=source) * scale * bright).to(torch.uint8)


def assert_same(a, b):
    assert (a.extractor, a.origin) == (b.extractor, b.origin)
    for mine, other in ((a.pooled, b.pooled), (a.spatial, b.spatial)):
        assert mine.count == other.count
        np.testing.assert_array_equal(mine.mean, other.mean)
        np.testing.assert_array_equal(mine.covariance, other.covariance)
    for kind in ("pooled", "spatial", "logits"):
        assert torch.equal(getattr(a.images, kind), getattr(b.images, kind))


# ---- computed


def test_statistics_are_the_features_mean_and_covariance():
    network, pixels = extractor(), images(50)
    features = network.measure(pixels)
    reference = reference_from_images(pixels.split(7), network)
    for statistics, values in ((reference.pooled, features.pooled), (reference.spatial, features.spatial)):
        values = values.double().numpy()
        assert statistics.count == 50
        np.testing.assert_allclose(statistics.mean, values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(statistics.covariance, np.cov(values, rowvar=False), rtol=1e-5, atol=1e-9)
    generated = network.measure(images(40, seed=5))
    fid = generation_metrics(generated, reference)[0]
    assert fid.value == pytest.approx(frechet_distance(generated.pooled, features.pooled), rel=1e-5)


@pytest.mark.parametrize("keep", [20, 1000])
def test_a_reference_depends_neither_on_batches_nor_on_the_order(keep):
    network, pixels = extractor(), images(600)
    first = reference_from_images(pixels.split(64), network, keep=keep)
    other = reference_from_images(pixels[torch.randperm(600)].split(7), network, keep=keep)
    assert len(first.images) == min(keep, 600)
    for kind in ("pooled", "spatial", "logits"):
        torch.testing.assert_close(getattr(first.images, kind), getattr(other.images, kind))
    np.testing.assert_allclose(first.spatial.covariance, other.spatial.covariance, rtol=1e-4, atol=1e-8)


def test_kept_images_are_drawn_from_all():
    network, pixels = extractor(), images(600)
    kept = reference_from_images(pixels.split(100), network, keep=60).images
    distance = torch.cdist(kept.pooled, network.measure(pixels).pooled)
    places = distance.argmin(dim=1)
    assert len(places.unique()) == 60
    assert 200 < places.float().mean() < 400  # deviation of the mean: 22


def test_a_reference_tells_of_its_progress_and_needs_two_images():
    told = []
    reference_from_images(images(5).split(2), extractor(), advance=lambda n, note: told.append(n))
    assert told == [2, 2, 1]
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        reference_from_images([images(1)], extractor())


# ---- kept on disk


def test_a_written_reference_is_read_back_to_the_bit(tmp_path):
    network = extractor()
    reference = reference_from_images(images(50).split(8), network)
    _write_reference(tmp_path / "r.npz", reference, network)
    assert_same(read_reference(tmp_path / "r.npz", network), reference)


def test_a_reference_by_other_weights_is_refused(tmp_path):
    network = extractor()
    _write_reference(tmp_path / "r.npz", reference_from_images([images(9)], network), network)
    for other in (extractor(seed=7), extractor("inception")):
        with pytest.raises(UserError, match=r"holds features of efficientnet_lite0, of other weights"):
            read_reference(tmp_path / "r.npz", other)


class Counted:
    """Computes a reference and counts how often."""

    def __init__(self, network, pixels):
        self.network, self.pixels, self.times = network, pixels, 0

    def __call__(self):
        self.times += 1
        return reference_from_images(self.pixels.split(8), self.network)


def test_a_cached_reference_is_computed_once_for_the_same_inputs(tmp_path):
    network = extractor()
    compute = Counted(network, images(30))
    made_of = {"data": "abc", "preprocessing": "crop"}
    first = cached_reference(tmp_path / "cache", made_of, network, compute)
    again = cached_reference(tmp_path / "cache", dict(reversed(made_of.items())), extractor(), compute)
    assert compute.times == 1
    assert_same(first, again)
    for i, (other, its_network) in enumerate(
        [
            ({**made_of, "data": "abd"}, network),
            ({**made_of, "preprocessing": "resize"}, network),
            (made_of, extractor(seed=7)),
        ]
    ):
        cached_reference(tmp_path / "cache", other, its_network, compute)
        assert compute.times == 2 + i


def test_a_foreign_or_broken_file_in_the_cache_is_computed_anew_and_said_so(tmp_path, capsys):
    network = extractor()
    compute = Counted(network, images(30))
    expected = cached_reference(tmp_path, {"data": "a"}, network, compute)
    (first,) = tmp_path.iterdir()
    cached_reference(tmp_path, {"data": "b"}, network, Counted(network, images(30, seed=3)))
    (second,) = set(tmp_path.iterdir()) - {first}
    first.write_bytes(second.read_bytes())  # a name that promises other data than lies inside
    assert_same(cached_reference(tmp_path, {"data": "a"}, network, compute), expected)
    assert "computed again: it was made of something else" in " ".join(capsys.readouterr().err.split())
    first.write_bytes(first.read_bytes()[:500])
    assert_same(cached_reference(tmp_path, {"data": "a"}, network, compute), expected)
    assert "computed again: it can't be read" in " ".join(capsys.readouterr().err.split())
    assert compute.times == 3
    cached_reference(tmp_path, {"data": "a"}, network, compute)
    assert compute.times == 3


# ---- ADM's files


def adm_arrays(seed=0):
    draw = np.random.default_rng(seed)
    arrays = {}
    for suffix, size in (("", 8), ("_s", 28)):
        root = draw.normal(size=(size, size))
        arrays |= {f"mu{suffix}": draw.normal(size=size).astype(np.float32), f"sigma{suffix}": root @ root.T}
    return arrays


def test_adms_statistics_are_taken_as_they_are_and_their_images_kept(tmp_path):
    network, pixels, arrays = extractor("inception"), images(30), adm_arrays()
    np.savez(tmp_path / "adm.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy(), **arrays)
    reference = read_reference(tmp_path / "adm.npz", network, batch_size=4)
    np.testing.assert_array_equal(reference.pooled.mean, arrays["mu"])
    np.testing.assert_array_equal(reference.spatial.covariance, arrays["sigma_s"])
    assert reference.pooled.count is None
    assert len(reference.images) == 30
    generated = network.measure(images(40, seed=5))
    results = generation_metrics(generated, reference)
    assert [result.name for result in results] == ["FID", "sFID", "IS", "KID", "precision", "recall"]
    assert "against the statistics in adm.npz" in results[0].note
    assert results[3].counts == {"generated": 40, "real": 30}
    plain = read_reference(tmp_path / "adm.npz", extractor())  # another network: only the images count
    assert plain.pooled.count == plain.spatial.count == 30


def test_files_with_statistics_alone_give_what_they_can(tmp_path):
    network, arrays = extractor("inception"), adm_arrays()
    np.savez(tmp_path / "fid.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    reference = read_reference(tmp_path / "fid.npz", network)
    assert reference.spatial is None
    assert reference.images is None
    results = generation_metrics(network.measure(images(40)), reference)
    assert [result.name for result in results] == ["FID", "IS"]
    with pytest.raises(UserError, match=r"Inception's features, got efficientnet_lite0.*take inception"):
        read_reference(tmp_path / "fid.npz", extractor())


def broken_arrays(**changes):
    arrays = {**adm_arrays(), **changes}
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken_arrays(sigma=None), r"has no sigma, got mu, mu_s, sigma_s; expected mu and sigma"),
        (broken_arrays(mu_s=None), r"has no mu_s"),
        (broken_arrays(mu=np.zeros(64)), r"\(64,\) and \(8, 8\); expected \(8,\) and \(8, 8\)"),
        (broken_arrays(sigma_s=np.zeros((28, 27))), r"mu_s and sigma_s .* \(28, 27\); expected \(28,\)"),
        (broken_arrays(mu=np.full(8, np.nan)), "holds NaN"),
        ({"images": np.zeros(3)}, "no images: expected arr_0"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "adm.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_reference(tmp_path / "adm.npz", extractor("inception"))


def test_images_alone_make_a_reference_from_a_file_or_a_folder(tmp_path):
    from PIL import Image

    network, pixels = extractor(), images(30)
    write_samples_npz(tmp_path / "s.npz", pixels.split(8), count=30)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pixels.flip(0)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "pictures" / f"{i}.png")
    expected = reference_from_images(pixels.split(30), network)
    for path in (tmp_path / "s.npz", tmp_path / "pictures"):
        reference = read_reference(path, network, batch_size=7)
        assert frechet_of_statistics(reference.pooled, expected.pooled) == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(reference.images.pooled, expected.images.pooled)


def test_a_broken_reference_is_refused(tmp_path):
    (tmp_path / "adm.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match=r"is not an \.npz, or is broken"):
        read_reference(tmp_path / "adm.npz", extractor())
    with pytest.raises(UserError, match="there are no samples at"):
        read_reference(tmp_path / "nothing", extractor())
