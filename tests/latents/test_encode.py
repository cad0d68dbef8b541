"""Every training image encoded once, and once mirrored, into safetensors shards."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import IterableDataset

from ldmae.config.data import LatentsConfig
from ldmae.core.autoencoding import encode_moments
from ldmae.core.errors import UserError
from ldmae.latents.encode import encode_images, encode_stream, shard_name, shard_ranges
from ldmae.latents.shards import LatentShards, read_header
from ldmae.latents.statistics import latent_statistics, save_statistics

from ..tiny import tiny_vmae
from .tiny import Images


def encode(folder, dataset=None, autoencoder=None, fingerprint="maker", **settings):
    process = {name: settings.pop(name) for name in ("rank", "world", "advance") if name in settings}
    encode_images(
        autoencoder or tiny_vmae(),
        dataset or Images(),
        Path(folder),
        LatentsConfig(**{"batch_size": 3, "shard_size": 4, "num_workers": 0, **settings}),
        fingerprint,
        **process,
    )
    return LatentShards(folder)


def moments(images):
    with torch.no_grad():
        return torch.cat(encode_moments(tiny_vmae(), images), dim=1)


def pictures(length=10):
    return torch.stack([Images(length)[(0, index)]["images"] for index in range(length)])


def read_all(shards, flip=False):
    return torch.stack([shards.read(index, flip) for index in range(len(shards))])


@pytest.mark.parametrize("world", [1, 2, 3, 12])
@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_processes_write_contiguous_ranges_in_the_order_of_names(world, shard_size):
    ranges = {
        shard_name(rank, shard): images
        for rank in range(world)
        for shard, images in enumerate(shard_ranges(10, rank, world, shard_size))
    }
    assert [index for name in sorted(ranges) for index in ranges[name]] == list(range(10))
    assert all(1 <= len(images) <= shard_size for images in ranges.values())


def test_shards_hold_the_moments_of_images_and_of_their_mirror_images(tmp_path):
    shards = encode(tmp_path)
    assert [path.name for path in shards.paths] == [shard_name(0, shard) for shard in range(3)]
    torch.testing.assert_close(read_all(shards), moments(pictures()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        read_all(shards, flip=True), moments(pictures().flip(-1)), rtol=1e-4, atol=1e-5
    )
    assert shards.labels().tolist() == [index % 3 for index in range(10)]
    assert shards.fingerprints == {"maker"}


class LightningDiTReader:
    """Reads a folder as that project's data set does: every key by a slice, statistics beside the shards."""

    def __init__(self, folder):
        self.files = sorted(folder.glob("*.safetensors"))
        self.places = []
        for file in self.files:
            with safe_open(file, framework="pt", device="cpu") as shard:
                count = shard.get_slice("labels").get_shape()[0]
            self.places += [(file, row) for row in range(count)]
        stats = torch.load(folder / "latents_stats.pt", weights_only=True)
        self.mean, self.std = stats["mean"], stats["std"]

    def __len__(self):
        return len(self.places)

    def item(self, index, key="latents"):
        file, row = self.places[index]
        with safe_open(file, framework="pt", device="cpu") as shard:
            feature = shard.get_slice(key)[row : row + 1]  # (1, C, h, w)
            label = shard.get_slice("labels")[row : row + 1]
        return ((feature - self.mean) / self.std).squeeze(0), label.squeeze(0)


def test_the_loader_of_lightningdit_reads_the_folder(tmp_path):
    shards = encode(tmp_path, moments=False)
    save_statistics(tmp_path, *latent_statistics(shards, 4, 100, seed=0))
    reader = LightningDiTReader(tmp_path)
    assert len(reader) == 10
    assert reader.mean.shape == reader.std.shape == (1, 4, 1, 1)
    for index in (0, 4, 9):
        for key, flip in (("latents", False), ("latents_flip", True)):
            latent, label = reader.item(index, key)
            expected = (shards.read(index, flip) - reader.mean[0]) / reader.std[0]
            assert torch.equal(latent, expected)
            assert label.item() == index % 3
            assert label.dtype == torch.int64


def test_several_processes_give_the_order_of_one(tmp_path):
    one = encode(tmp_path / "one")
    for rank in range(3):
        encode(tmp_path / "three", rank=rank, world=3)
    three = LatentShards(tmp_path / "three")
    assert len(three.paths) == 3
    torch.testing.assert_close(read_all(three), read_all(one), rtol=1e-4, atol=1e-5)
    assert three.labels().tolist() == one.labels().tolist()


@pytest.mark.parametrize(("dtype", "code"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_each_number_format_comes_back_to_its_precision(tmp_path, dtype, code):
    shards = encode(tmp_path, dtype=dtype)
    assert read_header(shards.paths[0]).tensors["latents"][0] == code
    stored = shards.read(7)
    assert stored.dtype == torch.float32
    expected = moments(pictures())[7].to(getattr(torch, dtype)).float()
    torch.testing.assert_close(stored, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(stored, stored.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shard_written_batch_by_batch_is_what_safetensors_writes_at_once(tmp_path, dtype):
    shards = encode(tmp_path, dtype=dtype, shard_size=7)
    for path in shards.paths:
        tensors = load_file(path)
        save_file(tensors, tmp_path / "whole", {"fingerprint": "maker"})
        assert read_header(tmp_path / "whole").tensors == {
            name: (code, shape, place + (tmp_path / "whole").stat().st_size - path.stat().st_size)
            for name, (code, shape, place) in read_header(path).tensors.items()
        }


def test_means_alone_and_no_mirror_images_on_request(tmp_path):
    shards = encode(tmp_path, moments=False, flip=False)
    assert shards.shape == (4, 4, 4)
    assert not shards.has_flips
    torch.testing.assert_close(read_all(shards), moments(pictures())[:, :4], rtol=1e-4, atol=1e-5)


def test_a_deterministic_autoencoder_has_no_moments_to_keep(tmp_path):
    channels = {"encoder_block_out_channels": (4,), "decoder_block_out_channels": (4,)}
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    model = AutoencoderTiny(**channels, **blocks, latent_channels=2).eval()
    assert encode(tmp_path, autoencoder=model, moments=True).shape == (2, 16, 16)


def test_an_interrupted_encoding_goes_on_and_ends_bitwise_as_one_that_was_not(tmp_path):
    whole = encode(tmp_path / "whole")
    folder, counted = tmp_path / "interrupted", []
    with pytest.raises(KeyboardInterrupt):
        encode(folder, Images(broken_at=6))
    first = folder / shard_name(0, 0)
    assert list(folder.iterdir()) == [first]
    written = first.stat().st_mtime_ns
    images = Images()
    resumed = encode(folder, images, advance=lambda n, note: counted.append(n))
    assert first.stat().st_mtime_ns == written
    assert images.read == list(range(4, 10))
    assert sum(counted) == 10
    assert [path.name for path in resumed.paths] == [path.name for path in whole.paths]
    assert torch.equal(read_all(resumed), read_all(whole))
    assert torch.equal(read_all(resumed, flip=True), read_all(whole, flip=True))


def test_shards_of_another_autoencoder_are_made_again(tmp_path):
    encode(tmp_path)
    images = Images()
    shards = encode(tmp_path, images, fingerprint="other")
    assert images.read == list(range(10))
    assert shards.fingerprints == {"other"}


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "float64"}, {"fingerprint": "no"}, {"batch_size": 0}, {"shard_size": 0}, {"num_workers": -1}],
)
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(UserError, match=rf"latents\.{next(iter(settings))} must be"):
        LatentsConfig(**settings)


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return (Images()[(0, index)] for index in range(self.length))


def test_a_stream_becomes_shards_in_its_order(tmp_path):
    config = LatentsConfig(batch_size=3, shard_size=4, num_workers=0)
    encode_stream(tiny_vmae(), Stream(10), tmp_path, config, "maker")
    shards = LatentShards(tmp_path)
    torch.testing.assert_close(read_all(shards), moments(pictures()), rtol=1e-4, atol=1e-5)
    assert shards.labels().tolist() == [index % 3 for index in range(10)]
    with pytest.raises(UserError, match="the stream gave no image"):
        encode_stream(tiny_vmae(), Stream(0), tmp_path, config, "maker")


def test_an_autoencoder_that_gives_nan_is_refused_by_image_before_a_shard_is_written(tmp_path):
    class NanAtThree(torch.nn.Module):
        def encode(self, images):
            broken = (images - pictures()[3]).abs().flatten(1).max(1).values < 1e-6
            return torch.where(broken[:, None, None, None], torch.nan, images)

    dataset = Images()
    dataset.source = SimpleNamespace(describe="picture-{}.png".format)
    with pytest.raises(
        UserError, match=r"NanAtThree.encode returned NaN for picture-3\.png, computing in float32"
    ):
        encode_images(
            NanAtThree(), dataset, tmp_path, LatentsConfig(num_workers=0, shard_size=100, batch_size=2), "m"
        )
    assert not list(tmp_path.glob("*.safetensors"))


def test_latents_that_a_format_cannot_hold_are_refused(tmp_path):
    class Large(torch.nn.Module):
        def encode(self, images):
            return images + 1e6

    with pytest.raises(
        UserError,
        match=r"latents of up to 1e\+06 do not fit latents.dtype=float16; give latents.dtype=float32",
    ):
        encode_images(Large(), Images(), tmp_path, LatentsConfig(num_workers=0, dtype="float16"), "m")
