from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from ldmae.app.explorer import _GREY, MOST_HIDDEN, AutoencoderExplorer, metrics_of
from ldmae.core.autoencoding import encode_moments, reconstruct
from ldmae.core.errors import UserError
from ldmae.evaluation.reconstruction import to_uint8

from .conftest import SIZE, photo, tiny_vae

STD = [0.5, 1.0, 2.0, 0.1]


@pytest.fixture(scope="module")
def explorer(perceptual) -> AutoencoderExplorer:
    samples = [photo(seed=k) for k in range(6)]
    return AutoencoderExplorer(tiny_vae(), SIZE, samples, perceptual, STD)


@pytest.fixture(scope="module")
def latent(explorer):
    return explorer.encode(photo(90, 60, seed=9))


def test_an_image_of_any_shape_becomes_the_centred_square(explorer, latent):
    assert latent.image.shape == (1, 3, SIZE, SIZE)
    assert latent.mean.equal(encode_moments(explorer.autoencoder, latent.image)[0])
    assert latent.picture.shape == (SIZE, SIZE, 3)


def test_reconstruction_is_that_of_the_measurements(explorer, latent):
    seen = explorer.reconstruction(latent)
    expected = to_uint8(reconstruct(explorer.autoencoder, latent.image))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(seen.picture, expected)
    error = (latent.picture.astype(float) - expected) ** 2
    assert seen.metrics["PSNR"] == pytest.approx(10 * np.log10(255**2 / error.mean()))
    assert set(seen.metrics) == {"PSNR", "ST-LPIPS-alex"}


def test_without_noise_the_picture_is_the_reconstruction_and_with_more_it_leaves_it(explorer, latent):
    plain = explorer.reconstruction(latent).picture.astype(int)
    gaps = [
        np.abs(explorer.noisy(latent, epsilon).picture.astype(int) - plain).mean()
        for epsilon in (0, 0.1, 0.5)
    ]
    assert gaps[0] == 0 < gaps[1] < gaps[2]
    assert np.array_equal(explorer.noisy(latent, 0.3).picture, explorer.noisy(latent, 0.3).picture)


def test_noise_is_in_the_deviations_that_are_given_or_else_in_those_of_the_samples(explorer, perceptual):
    assert explorer.deviation.flatten().tolist() == pytest.approx(STD)
    samples = [photo(seed=k) for k in range(6)]
    unknown = AutoencoderExplorer(tiny_vae(), SIZE, samples, perceptual)
    means = torch.cat([unknown.encode(sample).mean for sample in samples])
    assert unknown.deviation.flatten().tolist() == pytest.approx(means.std(dim=(0, 2, 3)).tolist(), rel=1e-4)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_noise_out_of_range_is_refused(explorer, latent, epsilon):
    with pytest.raises(UserError, match="ε must be from 0 to 1"):
        explorer.noisy(latent, epsilon)


def test_latents_become_colours_that_mean_the_same_in_every_image(explorer, latent):
    colours = explorer.colours(latent)
    assert colours.shape == (SIZE, SIZE, 3)
    blocks = colours.reshape(4, 8, 4, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # a colour for each cell
    assert np.array_equal(colours, explorer.components.pictures(latent.mean, (SIZE, SIZE))[0])


def test_with_nothing_hidden_the_picture_is_the_reconstruction(explorer, latent):
    sees, made = explorer.hidden(latent, 0.0)
    assert np.array_equal(sees, latent.picture)
    gap = made.picture.astype(int) - explorer.reconstruction(latent).picture.astype(int)
    assert np.abs(gap).max() <= 1


def grey_patches(picture: np.ndarray) -> np.ndarray:
    return (picture.reshape(4, 8, 4, 8, 3) == _GREY).all(axis=(1, 3, 4))


def test_hidden_patches_are_grey_and_more_hide_the_same_ones_too(explorer, latent):
    hidden = [grey_patches(explorer.hidden(latent, share)[0]) for share in (0.25, 0.5, 0.75, MOST_HIDDEN)]
    assert [int(each.sum()) for each in hidden] == [4, 8, 12, 15]
    assert all((less <= more).all() for less, more in pairwise(hidden))


def test_what_is_hidden_plays_no_part_in_what_is_decoded(explorer):
    image = photo(SIZE, SIZE, seed=2)
    first = explorer.encode(image)
    sees, made = explorer.hidden(first, 0.5)
    pixels = np.asarray(image).copy()
    pixels[np.repeat(np.repeat(grey_patches(sees), 8, 0), 8, 1)] = 200
    other = explorer.encode(Image.fromarray(pixels))
    assert np.array_equal(explorer.hidden(other, 0.5)[1].picture, made.picture)
    assert not np.array_equal(explorer.reconstruction(other).picture, explorer.reconstruction(first).picture)


@pytest.mark.parametrize(("part", "word"), [("encode", "NaN"), ("decode", "infinity")])
def test_a_model_that_is_not_finite_is_told_where_patches_are_hidden_too(perceptual, part, word):
    vae = tiny_vae()
    image = AutoencoderExplorer(vae, SIZE, [], perceptual, STD).encode(photo())
    layer = vae.to_latent if part == "encode" else vae.decoder_pred.linear_pred
    with torch.no_grad():
        layer.bias[0] = float("nan" if part == "encode" else "inf")
    with pytest.raises(UserError, match=f"AutoencoderVMAE.{part} returned {word}"):
        AutoencoderExplorer(vae, SIZE, [], perceptual, STD).hidden(image, 0.5)


def test_another_draw_hides_other_patches(explorer, latent):
    first, second = (grey_patches(explorer.hidden(latent, 0.5, draw)[0]) for draw in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("share", [-0.1, 0.96, float("nan")])
def test_a_share_out_of_range_is_refused(explorer, latent, share):
    with pytest.raises(UserError, match=r"must be from 0 to 0\.95"):
        explorer.hidden(latent, share)


def test_who_can_hide_no_patches_says_why(perceptual):
    without = AutoencoderExplorer(tiny_vae(use_mask_token=False), SIZE, [photo()], perceptual, STD)
    assert "no mask token" in without.cannot_hide
    with pytest.raises(UserError, match="no mask token"):
        without.hidden(without.encode(photo()), 0.5)
    foreign = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=4)
    assert (
        "AutoencoderKL always encodes whole images"
        in AutoencoderExplorer(foreign, SIZE, [photo()], perceptual).cannot_hide
    )


def test_at_its_ends_a_mixture_is_the_reconstruction_of_either(explorer, latent):
    other = explorer.encode(photo(seed=3))
    first, middle, second = explorer.between(latent, other, [0.0, 0.5, 1.0])
    assert np.array_equal(first, explorer.reconstruction(latent).picture)
    assert np.array_equal(second, explorer.reconstruction(other).picture)
    assert not np.array_equal(middle, first)
    with pytest.raises(UserError, match="from 0 to 1"):
        explorer.between(latent, other, [1.5])


def test_any_autoencoder_can_be_looked_into(perceptual):
    torch.manual_seed(0)
    foreign = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=4).eval()
    explorer = AutoencoderExplorer(foreign, SIZE, [photo(seed=k) for k in range(3)], perceptual)
    latent = explorer.encode(photo())
    assert explorer.reconstruction(latent).picture.shape == (SIZE, SIZE, 3)
    assert explorer.colours(latent).shape == (SIZE, SIZE, 3)
    assert explorer.noisy(latent, 0.1).metrics["PSNR"] > 0


def test_images_too_small_for_the_perceptual_distance_have_a_psnr_alone(perceptual):
    picture = np.asarray(photo(16, 16))
    assert set(metrics_of(picture, picture // 2, perceptual)) == {"PSNR"}
