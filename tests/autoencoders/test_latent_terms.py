"""Each term against its formula, written out with loops or taken from another library."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn

from ldmae.autoencoders.latent_terms import (
    alignment,
    draw_transform,
    relative_std,
    scale_guard,
    spectrum_kl,
    variance_expansion,
)
from ldmae.contracts import BatchKeys


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posterior():
    return 2 * latents(2, 3, 4, 5), latents(2, 3, 4, 5, seed=1) - 2


def keys(step, rows=range(4)):
    return BatchKeys(seed=0, step=step, rows=list(rows), batch_size=4)


# ---- noise


def test_relative_std_is_noise_over_the_spread_of_the_means():
    mean, logvar = posterior()
    for found, m, lv in zip(relative_std(mean, logvar), mean, logvar, strict=True):
        noise = math.sqrt(sum(math.exp(v) for v in lv.flatten().tolist()) / lv.numel())
        assert found.item() == pytest.approx(noise / np.std(m.numpy(), ddof=1), rel=1e-5)
    torch.testing.assert_close(relative_std(7 * mean, logvar + 2 * math.log(7)), relative_std(mean, logvar))
    assert relative_std(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)).isfinite()


@pytest.mark.parametrize("relative", [False, True])
def test_variance_expansion_is_the_mean_inverse_variance(relative):
    mean, logvar = posterior()
    for found, m, lv in zip(variance_expansion(mean, logvar, relative), mean, logvar, strict=True):
        spread = np.var(m.numpy(), ddof=1) if relative else 1.0
        inverse = [1 / (math.exp(v) / spread + 1e-4) for v in lv.flatten().tolist()]
        assert found.item() == pytest.approx(sum(inverse) / len(inverse), rel=1e-5)


def test_only_the_relative_form_leaves_the_scale_of_latents_free():
    mean, logvar = posterior()
    scaled = 5 * mean, logvar + 2 * math.log(5)
    torch.testing.assert_close(variance_expansion(*scaled, True), variance_expansion(mean, logvar, True))
    assert (variance_expansion(*scaled, False) < 0.1 * variance_expansion(mean, logvar, False)).all()
    inflated = variance_expansion(5 * mean, logvar, True)  # the same noise beside larger means is less
    assert (inflated > 10 * variance_expansion(mean, logvar, True)).all()


def test_the_scale_guard_grows_exponentially_with_the_size_of_latents():
    z = latents(2, 3, 4)
    expected = [np.mean([math.exp(abs(v) - 1) for v in row.flatten().tolist()]) for row in z]
    torch.testing.assert_close(scale_guard(z), torch.tensor(expected, dtype=torch.float32))


# ---- spectrum


def slow_spectrum(x):
    power = np.mean([dctn(channel, norm="ortho") ** 2 for channel in x.numpy()], axis=0)
    height, width = power.shape
    rings = [[] for _ in range(16)]
    for v, u in itertools.product(range(height), range(width)):
        if u or v:
            rings[int(16 * math.sqrt(((v / height) ** 2 + (u / width) ** 2) / 2))].append(power[v, u])
    return [np.mean(ring) if ring else None for ring in rings]


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 6, 9)])
def test_the_spectrums_divergence_is_that_of_scipys_transform(shape):
    images, z = latents(2, 3, 32, 24), latents(2, *shape, seed=1).cumsum(-1)
    for found, image, latent in zip(spectrum_kl(images, z), images, z, strict=True):
        pairs = [
            ((k + 0.5) / 16 * a, b)
            for k, (a, b) in enumerate(zip(slow_spectrum(image), slow_spectrum(latent), strict=True))
            if a is not None and b is not None
        ]
        p, q = (np.array(side) / sum(side) for side in zip(*pairs, strict=True))
        assert found.item() == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-4)


def test_a_flat_image_has_a_finite_spectrum_with_a_finite_gradient():
    z = torch.zeros(1, 3, 4, 4, requires_grad=True)
    spectrum_kl(torch.zeros(1, 3, 16, 16), z).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


# ---- alignment


def test_alignment_is_va_vaes_two_margins():
    z, projected, features = latents(2, 3, 4), latents(2, 5, 4, seed=1), latents(2, 5, 4, seed=2)
    features[0] = projected[0]  # nothing left to be nearer

    def cosine(a, b):
        return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))

    for row, found in enumerate(alignment(z, projected, features)):
        w, x, f = (t[row].numpy().T for t in (projected, z, features))  # (N, channels)
        near = np.mean([max(0, 1 - 0.5 - cosine(w[i], f[i])) for i in range(4)])
        pairs = itertools.product(range(4), repeat=2)
        apart = [max(0, abs(cosine(x[i], x[j]) - cosine(f[i], f[j])) - 0.25) for i, j in pairs]
        assert found.item() == pytest.approx(near + np.mean(apart), rel=1e-4)


# ---- equivariance


def test_a_transform_comes_as_often_as_asked_and_is_the_same_for_all_pieces():
    drawn = [draw_transform(keys(step), 0.5, (8, 8), 1) for step in range(400)]
    assert 160 < sum(transform is not None for transform in drawn) < 240
    assert all(draw_transform(keys(step), 0.0, (8, 8), 1) is None for step in range(50))
    for step in range(20):
        one, other = (draw_transform(keys(step, rows), 1.0, (8, 8), 1) for rows in ([0], [1, 2]))
        x = latents(2, 3, 8, 8)
        assert torch.equal(one(x, 1), other(x, 1))


def test_transforms_scale_as_torch_does_or_turn():
    x, kinds = latents(2, 3, 16, 24), {"turned": 0, "scaled": 0}
    for step in range(60):
        transform = draw_transform(keys(step), 1.0, (4, 6), 1)
        assert transform is not None
        small, large = transform(x[:, :, ::4, ::4], 1), transform(x, 4)
        height, width = small.shape[2:]
        assert large.shape[2:] == (4 * height, 4 * width)
        turns = [k for k in (1, 2, 3) if torch.equal(large, x.rot90(k, (2, 3)))]
        if turns:
            kinds["turned"] += 1
            assert torch.equal(small, x[:, :, ::4, ::4].rot90(turns[0], (2, 3)))
        else:
            kinds["scaled"] += 1
            assert 1 <= height <= 4
            assert 1 <= width <= 6
            resized = F.interpolate(x, (4 * height, 4 * width), mode="bilinear", antialias=True)
            torch.testing.assert_close(large, resized, rtol=1e-4, atol=1e-5)
    assert min(kinds.values()) > 15


def test_scaling_leaves_as_many_cells_as_a_network_needs():
    found = set()
    for step in range(100):
        transform = draw_transform(keys(step), 1.0, (8, 8), 6)
        assert transform is not None
        found.add(transform(latents(1, 1, 8, 8), 1).shape[-1])
    assert found == {6, 7, 8}
