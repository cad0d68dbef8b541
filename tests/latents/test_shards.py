"""Shards read by index: memory-mapped, opened once, nothing held per item."""

import gc
import json
import os
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldmae.core.errors import UserError
from ldmae.latents.shards import LatentDataset, LatentShards, draw_latent, read_header
from ldmae.training.data import keyed_loader

from .tiny import write_shard

ZERO, ONE = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)


def numbered(first, count, channels=2):
    """Returns latents (count, channels, 3, 3) full of their own numbers."""
    return (
        torch.arange(first, first + count)
        .float()[:, None, None, None]
        .expand(-1, channels, 3, 3)
        .contiguous()
    )


# ---- reading


def test_an_index_goes_through_the_shards_in_their_order(tmp_path):
    for first, count in ((0, 3), (3, 1), (4, 5)):
        write_shard(tmp_path, numbered(first, count), torch.arange(first, first + count) * 10)
    shards = LatentShards(tmp_path)
    assert len(shards) == 9
    assert [shards.read(index)[0, 0, 0].item() for index in range(9)] == list(range(9))
    assert shards.labels().tolist() == [index * 10 for index in range(9)]
    assert shards.shape == (2, 3, 3)


def test_shards_go_by_number_where_names_run_out_of_digits(tmp_path):
    names = [
        "latents_rank00_shard999",
        "latents_rank00_shard1000",
        "latents_rank11_shard000",
        "latents_rank100_shard000",
    ]
    for value, name in enumerate(names):
        save_file(
            {"latents": numbered(value, 1), "labels": torch.tensor([value])}, tmp_path / f"{name}.safetensors"
        )
    assert LatentShards(tmp_path).labels().tolist() == [0, 1, 2, 3]


def test_mirror_images_are_read_from_their_own_tensor(tmp_path):
    write_shard(tmp_path, numbered(0, 2), latents_flip=-numbered(0, 2))
    shards = LatentShards(tmp_path)
    assert shards.has_flips
    assert shards.read(1, flip=True)[0, 0, 0] == -1


@pytest.mark.parametrize("index", [-1, 4])
def test_a_latent_that_is_not_there_is_not_replaced_by_another(tmp_path, index):
    for first in (0, 2):
        write_shard(tmp_path, numbered(first, 2))
    with pytest.raises(IndexError, match=f"no latent {index} among the 4"):
        LatentShards(tmp_path).read(index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_number_format_is_read_as_fp32(tmp_path, dtype):
    write_shard(tmp_path, numbered(0, 3).to(dtype) / 4, torch.arange(3, dtype=torch.int32))
    latent = LatentShards(tmp_path).read(2)
    assert latent.dtype == torch.float32
    assert torch.equal(latent, numbered(2, 1)[0] / 4)


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path):
    write_shard(tmp_path, numbered(0, 3))
    shards = LatentShards(tmp_path)
    shards.read(2).zero_()
    assert shards.read(2)[0, 0, 0] == 2


def test_each_shard_is_opened_once(tmp_path, monkeypatch):
    for first in (0, 4, 8):
        write_shard(tmp_path, numbered(first, 4), latents_flip=numbered(first, 4))
    opened, memmap = [], np.memmap

    def counting(path, *arguments):
        opened.append(path)
        return memmap(path, *arguments)

    shards = LatentShards(tmp_path)
    monkeypatch.setattr(np, "memmap", counting)
    dataset = LatentDataset(shards, 2, ZERO, ONE, seed=0)
    for epoch in range(3):
        for index in range(12):
            dataset[(epoch, index)]
    assert sorted(opened) == shards.paths


def test_a_process_that_gets_the_shards_opens_its_own_maps(tmp_path):
    write_shard(tmp_path, numbered(0, 4))
    shards = LatentShards(tmp_path)
    shards.read(0)
    sent = pickle.dumps(shards)
    assert len(sent) < 10_000
    assert pickle.loads(sent).read(3)[0, 0, 0] == 3


# ---- what is no shard


def test_a_shard_that_is_being_written_is_never_read(tmp_path):
    write_shard(tmp_path, numbered(0, 2))
    (tmp_path / ".writing-abc.safetensors").write_bytes(b"half")
    assert len(LatentShards(tmp_path)) == 2


def test_a_folder_without_latents_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"no latents in .*ldmae encode"):
        LatentShards(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -1], ids=["empty", "in the size", "in the head", "in the data"])
def test_a_shard_that_is_cut_short_is_named(tmp_path, kept):
    path = write_shard(tmp_path, numbered(0, 2))
    os.truncate(path, path.stat().st_size - 1 if kept < 0 else kept)
    told = r"shard000\.safetensors is not a complete safetensors file .*encode again"
    with pytest.raises(UserError, match=told):
        LatentShards(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": numbered(0, 2)}, r"lacks \['labels'\]"),
        ({"weight": torch.zeros(1)}, r"lacks \['labels', 'latents'\]"),
        ({"latents": numbered(0, 2), "labels": torch.arange(3)}, r"labels is I64 of shape \[3\]"),
        (
            {"latents": numbered(0, 2), "labels": torch.arange(2), "latents_flip": numbered(0, 1)},
            r"latents_flip is F32 of shape \[1, 2, 3, 3\]",
        ),
        ({"latents": torch.zeros(2, 9), "labels": torch.arange(2)}, r"latents is F32 of shape \[2, 9\]"),
        ({"latents": numbered(0, 2), "labels": torch.rand(2)}, "labels is F32"),
        (
            {"latents": numbered(0, 2).to(torch.float8_e4m3fn), "labels": torch.arange(2)},
            "latents is F8_E4M3",
        ),
    ],
)
def test_a_shard_of_another_layout_is_named_with_what_was_expected(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"a\.safetensors.*{message}.*expected"):
        LatentShards(tmp_path)


def test_shards_that_differ_are_refused(tmp_path):
    write_shard(tmp_path / "shape", numbered(0, 2))
    write_shard(tmp_path / "shape", numbered(0, 2, channels=4))
    write_shard(tmp_path / "flips", numbered(0, 2))
    write_shard(tmp_path / "flips", numbered(0, 2), latents_flip=numbered(0, 2))
    for name in ("shape", "flips"):
        with pytest.raises(UserError, match="differ in number format, shape or flips"):
            LatentShards(tmp_path / name)


def test_the_head_gives_formats_shapes_places_and_metadata(tmp_path):
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.safetensors", {"fingerprint": "f"})
    header = read_header(tmp_path / "a.safetensors")
    dtype, shape, offset = header.tensors["a"]
    assert (dtype, shape, header.metadata["fingerprint"]) == ("F32", (2, 3), "f")
    whole = (tmp_path / "a.safetensors").read_bytes()
    assert np.frombuffer(whole, "<f4", 6, offset).tolist() == list(range(6))


# ---- memory


def test_over_a_million_latents_cost_no_object_each(tmp_path):
    count, shape = 10_000, (4, 2, 2)
    size = count * 16 * 4
    header = {
        "latents": {"dtype": "F32", "shape": [count, *shape], "data_offsets": [0, size]},
        "labels": {"dtype": "I64", "shape": [count], "data_offsets": [size, size + 8 * count]},
    }
    head = json.dumps(header).encode()
    for shard in range(128):  # 1.28 M, as ImageNet has; files without content take no room on the disk
        path = tmp_path / f"latents_rank00_shard{shard:03d}.safetensors"
        path.write_bytes(len(head).to_bytes(8, "little") + head)
        os.truncate(path, 8 + len(head) + size + 8 * count)
    gc.collect()
    blocks = sys.getallocatedblocks()
    tracemalloc.start()
    dataset = LatentDataset(LatentShards(tmp_path), 4, torch.zeros(4, 1, 1), torch.ones(4, 1, 1), seed=0)
    for index in range(0, 1_280_000, 10_000):
        dataset[(0, index)]
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == 1_280_000
    assert sys.getallocatedblocks() - blocks < 50_000
    assert grown < 24e6  # two arrays of 8 bytes each: index and label


# ---- what the diffusion model learns


def latent(dataset: LatentDataset, *key: int) -> torch.Tensor:
    return dataset.finish(dataset.__getitems__([key]), "cpu")["latents"][0]


def test_items_are_normalised_and_bear_their_class(tmp_path):
    write_shard(tmp_path, numbered(0, 4), torch.tensor([5, 6, 7, 8]))
    mean, std = torch.tensor([1.0, 2.0])[:, None, None], torch.tensor([2.0, 4.0])[:, None, None]
    dataset = LatentDataset(LatentShards(tmp_path), 2, mean, std, seed=0)
    batch = dataset.finish(dataset.__getitems__([(0, 3), (1, 0)]), "cpu")
    assert torch.equal(batch["latents"], (numbered(0, 4)[[3, 0]] - mean) / std)
    assert batch["labels"].tolist() == [8, 5]


def test_a_batch_is_read_across_shards_as_one_item_after_the_other(tmp_path):
    for first in (0, 4, 8):
        write_shard(tmp_path, numbered(first, 4).half(), latents_flip=-numbered(first, 4).half())
    dataset = LatentDataset(LatentShards(tmp_path), 2, ZERO, ONE, seed=0)
    keys = [(epoch, index) for epoch in range(2) for index in (11, 0, 5, 4, 5)]
    batch = dataset.__getitems__(keys)
    assert batch["stored"].dtype == torch.float16
    for row, key in enumerate(keys):
        assert all(torch.equal(value[row], dataset[key][name]) for name, value in batch.items())
    loaded = next(iter(keyed_loader(dataset, [keys], 1, torch.device("cpu"))))
    assert all(torch.equal(loaded[name], value) for name, value in batch.items())


def test_only_the_images_that_are_kept_are_items(tmp_path):
    write_shard(tmp_path, numbered(0, 4), torch.tensor([-1, 3, -1, 4]))
    shards = LatentShards(tmp_path)
    dataset = LatentDataset(shards, 2, ZERO, ONE, 0, keep=np.flatnonzero(shards.labels() >= 0))
    assert [dataset[(0, place)]["labels"].item() for place in range(len(dataset))] == [3, 4]
    assert latent(dataset, 0, 1)[0, 0, 0] == 3


def test_draws_and_mirror_images_are_keyed_by_seed_epoch_and_index(tmp_path):
    moments = torch.cat([numbered(0, 40), torch.zeros(40, 2, 3, 3)], dim=1)  # variance 1
    write_shard(tmp_path, moments, latents_flip=-moments)
    shards = LatentShards(tmp_path)
    dataset = LatentDataset(shards, 2, ZERO, ONE, seed=0)
    again = LatentDataset(LatentShards(tmp_path), 2, ZERO, ONE, seed=0)
    other = LatentDataset(shards, 2, ZERO, ONE, seed=1)
    backwards = {index: latent(again, 0, index) for index in reversed(range(40))}
    for index in range(40):
        drawn = latent(dataset, 0, index)
        assert torch.equal(drawn, backwards[index])
        assert not torch.equal(drawn, latent(dataset, 1, index))
        assert not torch.equal(drawn, latent(other, 0, index))
    mirrored = sum(latent(dataset, 0, index).mean() < 0 for index in range(5, 40))
    assert 8 < mirrored < 27  # about half of 35


def test_a_draw_has_the_moments_that_are_stored():
    stored = torch.cat([torch.full((2, 100, 100), 3.0), torch.full((2, 100, 100), -2.0)])
    drawn = draw_latent(stored, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 100, 100)
    assert drawn.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.std().item() == pytest.approx(np.exp(-1), rel=0.02)
    assert draw_latent(stored, 4, torch.Generator()) is stored  # a mean of four channels


def test_latents_or_statistics_of_other_channels_are_refused(tmp_path):
    write_shard(tmp_path, numbered(0, 4, channels=4))
    shards = LatentShards(tmp_path)
    with pytest.raises(UserError, match=r"have 4 channels, the autoencoder has 3 \(or 6"):
        LatentDataset(shards, 3, ZERO, ONE, 0)
    with pytest.raises(UserError, match=r"statistics beside .* are of 2 channels, the autoencoder has 4"):
        LatentDataset(shards, 4, ZERO, ONE, 0)


def test_a_stored_latent_that_is_nan_is_named_before_a_training_learns_from_it(tmp_path):
    latents = numbered(0, 3)
    latents[1, 0, 0, 0] = float("nan")
    write_shard(tmp_path, latents)
    dataset = LatentDataset(LatentShards(tmp_path), 2, ZERO, ONE, 0)
    assert latent(dataset, 0, 0).isfinite().all()
    with pytest.raises(UserError, match=r"latent 1 in .* is NaN or infinite; encode again"):
        dataset[(0, 1)]


def head(path, header):
    """Writes a safetensors file with a head that nothing checks."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"latents": []},
        {"latents": {"dtype": "F32", "shape": [1, 1, 2, 2], "data_offsets": []}},
        {"latents": {"dtype": "F32", "shape": [1, 1, 2, 2], "data_offsets": [0, 4]}},
        {"latents": {"dtype": "F32", "shape": [-1, 1, 2, 2], "data_offsets": [0, 16]}},
        {"latents": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": 3},
    ],
)
def test_a_shard_whose_head_says_something_else_is_named(tmp_path, header):
    path = tmp_path / "latents_rank00_shard000.safetensors"
    head(path, header)
    with pytest.raises(UserError, match=r"shard000\.safetensors (is not a complete safetensors file|lacks)"):
        LatentShards(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_bytes(b"PK\x03\x04" * 100),
        lambda path: path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
    ],
    ids=["a folder", "a dangling link", "of another kind", "nested too deep"],
)
def test_what_is_no_shard_is_named(tmp_path, make):
    make(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors is not a complete safetensors file"):
        LatentShards(tmp_path)
