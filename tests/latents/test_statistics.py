"""Per-channel mean and deviation of the latents."""

import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.latents.shards import LatentShards
from ldmae.latents.statistics import FILE_NAME, latent_statistics, load_statistics, save_statistics

from .tiny import write_shard


def random_latents(count=64, channels=3):
    source = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 2.0, 7.0])[:channels, None, None]
    return torch.randn(count, channels, 4, 5, generator=source) * scale + 3


def test_statistics_of_stored_means_are_those_of_torch(tmp_path):
    latents = random_latents()
    write_shard(tmp_path, latents[:40])
    write_shard(tmp_path, latents[40:])
    done = []
    mean, std = latent_statistics(LatentShards(tmp_path), 3, 1000, 0, lambda n, note: done.append(n))
    assert sum(done) == 64
    torch.testing.assert_close(mean, latents.mean((0, 2, 3)))
    torch.testing.assert_close(std, latents.std((0, 2, 3), unbiased=False))
    assert mean.dtype == std.dtype == torch.float32


def test_statistics_of_moments_are_those_of_drawn_latents(tmp_path):
    mean = random_latents()
    write_shard(tmp_path, torch.cat([mean, torch.full_like(mean, 2.0)], dim=1))  # variance e²
    got_mean, got_std = latent_statistics(LatentShards(tmp_path), 3, samples=1000, seed=0)
    expected = (mean.var((0, 2, 3)) + torch.e**2).sqrt()  # variances add up
    torch.testing.assert_close(got_std, expected, rtol=0.05, atol=0)
    torch.testing.assert_close(got_mean, mean.mean((0, 2, 3)), rtol=0, atol=0.4)


def test_mirror_images_count_too(tmp_path):
    zeros = torch.zeros(200, 1, 4, 4)
    write_shard(tmp_path, zeros - 1, latents_flip=zeros + 1)
    mean, std = latent_statistics(LatentShards(tmp_path), 1, samples=200, seed=0)
    assert abs(mean.item()) < 0.25
    assert std.item() == pytest.approx(1, abs=0.05)


def test_a_sample_is_chosen_by_the_seed(tmp_path):
    write_shard(tmp_path, random_latents())
    shards = LatentShards(tmp_path)
    few = latent_statistics(shards, 3, samples=8, seed=0)
    assert torch.equal(few[0], latent_statistics(shards, 3, samples=8, seed=0)[0])
    assert not torch.equal(few[0], latent_statistics(shards, 3, samples=8, seed=1)[0])
    torch.testing.assert_close(few[1], random_latents().std((0, 2, 3)), rtol=0.3, atol=0)


def test_a_constant_channel_is_divided_by_one(tmp_path):
    latents = random_latents()
    latents[:, 1] = 1e4
    write_shard(tmp_path, latents)
    mean, std = latent_statistics(LatentShards(tmp_path), 3, samples=100, seed=0)
    assert (mean[1].item(), std[1].item()) == (1e4, 1.0)


def test_the_file_holds_what_lightningdit_expects_and_comes_back(tmp_path):
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    save_statistics(tmp_path, mean, std)
    stored = torch.load(tmp_path / "latents_stats.pt", weights_only=True)
    assert stored.keys() == {"mean", "std"}
    assert stored["mean"].shape == stored["std"].shape == (1, 2, 1, 1)
    loaded = load_statistics(tmp_path)
    assert torch.equal(loaded[0], mean[:, None, None])
    assert torch.equal(loaded[1], std[:, None, None])


def test_missing_or_damaged_statistics_are_named(tmp_path):
    with pytest.raises(UserError, match=r"latents_stats\.pt does not exist; make it with `ldmae encode`"):
        load_statistics(tmp_path)
    for damage in (b"", b"garbage"):
        (tmp_path / FILE_NAME).write_bytes(damage)
        with pytest.raises(UserError, match=r"holds no mean and std .*encode again"):
            load_statistics(tmp_path)


def test_statistics_of_latents_that_are_not_finite_are_refused(tmp_path):
    latents = random_latents()
    latents[5, 1, 2, 2] = float("nan")
    write_shard(tmp_path, latents)
    with pytest.raises(
        UserError, match=r"the latents in .* hold NaN or infinity; delete them and encode again"
    ):
        latent_statistics(LatentShards(tmp_path), 3, 1000, 0)


@pytest.mark.parametrize(
    "stored",
    [
        [],
        "text",
        {"mu": torch.zeros(2)},
        {"mean": [1.0], "std": [1.0]},
        {"mean": torch.zeros(3), "std": torch.zeros(3)},
    ],
)
def test_statistics_of_another_shape_are_named(tmp_path, stored):
    torch.save(stored, tmp_path / FILE_NAME)
    with pytest.raises(UserError, match="holds no mean and std"):
        load_statistics(tmp_path)


def test_statistics_that_are_a_folder_are_named(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(UserError, match="holds no mean and std"):
        load_statistics(tmp_path)
