"""Which item stands in which row of which step."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from ldmae.training.data import KeyedBatches, WaitingNotice, _epoch_order, keyed_loader, split_rows


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("micro", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("batch_size", [7, 8, 32])
def test_processes_and_micro_batches_share_all_rows_evenly_and_in_order(batch_size, micro, world):
    shares = [split_rows(batch_size, micro, rank, world) for rank in range(world)]
    assert [row for pieces in shares for rows in pieces for row in rows] == list(range(batch_size))
    sizes = [sum(map(len, pieces)) for pieces in shares]
    assert max(sizes) - min(sizes) <= 1
    assert len({len(pieces) for pieces in shares}) == 1  # sharded parameters are gathered by all at once
    uneven = micro == 1 and batch_size % world
    for pieces in shares:
        lengths = [len(rows) for rows in pieces]
        assert min(lengths) >= 1
        assert max(lengths) <= (2 if uneven else micro or batch_size)
        assert max(lengths) - min(lengths) <= 1


def test_a_process_has_the_same_rows_whatever_the_micro_batch():
    def rows(micro):
        return list(itertools.chain(*split_rows(30, micro, 1, 4)))

    assert rows(None) == rows(2) == rows(5)


def test_where_there_are_fewer_rows_than_processes_some_have_none():
    assert [split_rows(1, None, rank, 2) for rank in range(2)] == [[range(0)], [range(1)]]
    assert [split_rows(1, 4, rank, 2) for rank in range(2)] == [[range(0)], [range(1)]]


def stream(length, batch_size, steps, seed=0, start=0, micro=None, rank=0, world=1):
    pieces = split_rows(batch_size, micro, rank, world)
    return list(KeyedBatches(length, batch_size, pieces, start, steps, seed))


def test_every_item_comes_once_an_epoch_and_batches_cross_epochs():
    batches = stream(length=10, batch_size=4, steps=5)
    assert [len(batch) for batch in batches] == [4] * 5
    keys = list(itertools.chain(*batches))
    for epoch in range(2):
        assert sorted(index for of, index in keys if of == epoch) == list(range(10))
    assert {epoch for epoch, _ in batches[2]} == {0, 1}


def test_a_batch_larger_than_the_set_takes_items_again():
    keys = stream(length=3, batch_size=8, steps=1)[0]
    assert [epoch for epoch, _ in keys] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert {index for epoch, index in keys if epoch == 1} == {0, 1, 2}


def test_the_order_depends_on_seed_and_epoch_alone():
    assert np.array_equal(_epoch_order(3, 1, 50), _epoch_order(3, 1, 50))
    assert not np.array_equal(_epoch_order(3, 1, 50), _epoch_order(3, 2, 50))
    assert not np.array_equal(_epoch_order(3, 1, 50), _epoch_order(4, 1, 50))
    assert sorted(_epoch_order(3, 1, 50)) == list(range(50))


def test_a_resumed_stream_is_the_rest_of_the_whole_one():
    assert stream(10, 4, steps=9, start=6) == stream(10, 4, steps=9)[6:]


def test_processes_and_micro_batches_see_the_rows_of_the_one_stream():
    whole = stream(10, 4, steps=5)
    halves = [stream(10, 4, steps=5, rank=rank, world=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    single = stream(10, 4, steps=5, micro=1)
    assert [list(itertools.chain(*single[i : i + 4])) for i in range(0, 20, 4)] == whole


def test_the_length_is_that_of_what_comes():
    batches = KeyedBatches(10, 4, split_rows(4, 2, 0, 1), 1, 4, 0)
    assert len(batches) == len(list(batches)) == 6


class Keys(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, key):
        return {"key": torch.tensor(key)}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    def load(workers):
        batches = KeyedBatches(10, 4, split_rows(4, 3, 0, 1), 0, 6, 0)
        return [batch["key"] for batch in keyed_loader(Keys(), batches, workers, torch.device("cpu"))]

    for ours, plain in zip(load(workers), load(0), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_training_on_a_gpu_and_not_because_there_is_one(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batches = KeyedBatches(10, 4, split_rows(4, 4, 0, 1), 0, 1, 0)
    assert keyed_loader(Keys(), batches, 0, torch.device(device)).pin_memory == (device == "cuda")


def test_a_tenth_of_the_time_is_no_wait_and_neither_is_the_start(capsys):
    notice = WaitingNotice("diffusion", 3)
    for share in (0.9, 0.05, 0.1):
        notice(share)
    assert not capsys.readouterr().err
    notice(0.11)
    assert "waits for data 11% of the time" in (said := capsys.readouterr().err)
    assert "diffusion.training.num_workers=6 (now 3)" in said
    notice(0.5)
    assert not capsys.readouterr().err
