import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ldmae.core.errors import UserError
from ldmae.images.dataset import ImageDataset
from ldmae.images.settings import AugmentConfig
from ldmae.images.sources import FolderSource
from ldmae.images.transforms import center_crop, to_tensor


@pytest.fixture
def source(make, tmp_path):
    return FolderSource(make.folder(tmp_path, {"a": [1, 2, 3], "b": [4, 5]}))


def test_item_has_image_and_label(source):
    item = ImageDataset(source, 24, 0, AugmentConfig())[0, 3]
    assert item["images"].shape == (3, 24, 24)
    assert item["images"].dtype == torch.float32
    assert -1 <= item["images"].min() < item["images"].max() <= 1
    assert item["labels"].shape == ()
    assert item["labels"].dtype == torch.int64
    assert item["labels"].item() == 1


def test_without_augmentation_it_is_the_centre_crop_in_every_epoch(source):
    dataset = ImageDataset(source, 24)
    expected = to_tensor(center_crop(source.read(2), 24))
    assert torch.equal(dataset[0, 2]["images"], expected)
    assert torch.equal(dataset[5, 2]["images"], expected)


def test_augmentation_is_keyed_by_seed_epoch_and_index_alone(source):
    config = AugmentConfig()
    first = ImageDataset(source, 24, 7, config)
    again = pickle.loads(pickle.dumps(first))
    for key in [(3, 4), (0, 0), (3, 1)]:  # another order
        assert torch.equal(first[key]["images"], again[key]["images"])
    torch.manual_seed(1)
    assert torch.equal(first[0, 0]["images"], again[0, 0]["images"])
    assert not torch.equal(first[0, 0]["images"], first[1, 0]["images"])
    assert not torch.equal(first[0, 0]["images"], ImageDataset(source, 24, 8, config)[0, 0]["images"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_the_main_process_gives(source, workers):
    dataset = ImageDataset(source, 24, 0, AugmentConfig())
    keys = [(1, k) for k in (4, 2, 0, 3, 1)]
    loader = DataLoader(dataset, batch_size=2, sampler=keys, num_workers=workers)
    images = torch.cat([batch["images"] for batch in loader])
    assert torch.equal(images, torch.stack([dataset[key]["images"] for key in keys]))


def test_image_that_vanished_is_named(source):
    dataset = ImageDataset(source, 24)
    path = source.path(1)
    (source.folder / "a" / "0002.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*0002\.png"):
        dataset[0, 1]
    assert path.endswith("0002.png")
