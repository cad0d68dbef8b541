import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.cuda import is_available as cuda
from torch.utils.data import DataLoader, default_collate

from ldmae.config.data import AugmentConfig
from ldmae.core.errors import UserError
from ldmae.images.dataset import ImageDataset
from ldmae.images.sources import FolderSource
from ldmae.images.transforms import center_crop, to_tensor
from ldmae.training.data import keyed_loader


@pytest.fixture
def source(make, tmp_path):
    return FolderSource(make.folder(tmp_path, {"a": [1, 2, 3], "b": [4, 5]}))


def test_item_has_image_and_label(source):
    item = ImageDataset(source, 24, 0, AugmentConfig())[0, 3]
    assert item["pixels"].shape == (24, 24, 3)
    assert item["pixels"].dtype == torch.uint8
    assert item["labels"].shape == ()
    assert item["labels"].dtype == torch.int64
    assert item["labels"].item() == 1


def test_without_augmentation_it_is_the_centre_crop_in_every_epoch(source):
    dataset = ImageDataset(source, 24)
    expected = np.asarray(center_crop(source.read(2), 24))
    assert np.array_equal(dataset[0, 2]["pixels"], expected)
    assert np.array_equal(dataset[5, 2]["pixels"], expected)


def test_a_file_that_was_replaced_since_it_was_listed_is_refused(source):
    file = Path(source.describe(2))
    before, content = file.stat(), file.read_bytes()
    for changed, time in ((content + b"\0", before.st_mtime), (content, 1)):  # its size, its time
        file.write_bytes(changed)
        os.utime(file, (time, time))
        with pytest.raises(UserError, match=rf"^{file} has been replaced or written to since it was listed"):
            ImageDataset(source, 24)[0, 2]
    ImageDataset(FolderSource(source.folder), 24)[0, 2]


def test_a_batch_is_normalised_on_its_device(source):
    dataset = ImageDataset(source, 24)
    batch = dataset.finish(default_collate([dataset[0, k] for k in (4, 2)]), "cpu")
    expected = torch.stack([to_tensor(center_crop(source.read(k), 24)) for k in (4, 2)])
    assert batch["images"].shape == (2, 3, 24, 24)
    assert torch.equal(batch["images"], expected)
    assert torch.equal(dataset.images([4, 2]), expected)
    assert batch["labels"].tolist() == [1, 0]
    assert "pixels" not in batch


def test_augmentation_is_keyed_by_seed_epoch_and_index_alone(source):
    config = AugmentConfig()
    first = ImageDataset(source, 24, 7, config)
    again = pickle.loads(pickle.dumps(first))
    for key in [(3, 4), (0, 0), (3, 1)]:  # another order
        assert torch.equal(first[key]["pixels"], again[key]["pixels"])
    torch.manual_seed(1)
    assert torch.equal(first[0, 0]["pixels"], again[0, 0]["pixels"])
    assert not torch.equal(first[0, 0]["pixels"], first[1, 0]["pixels"])
    assert not torch.equal(first[0, 0]["pixels"], ImageDataset(source, 24, 8, config)[0, 0]["pixels"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_the_main_process_gives(source, workers):
    dataset = ImageDataset(source, 24, 0, AugmentConfig())
    keys = [(1, k) for k in (4, 2, 0, 3, 1)]
    loader = DataLoader(dataset, batch_size=2, sampler=keys, num_workers=workers)
    images = torch.cat([batch["pixels"] for batch in loader])
    assert torch.equal(images, torch.stack([dataset[key]["pixels"] for key in keys]))


def test_image_that_vanished_is_named(source):
    dataset = ImageDataset(source, 24)
    path = source.describe(1)
    (source.folder / "a" / "0002.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*0002\.png"):
        dataset[0, 1]
    assert path.endswith("0002.png")


@pytest.fixture
def mixed(make, tmp_path):
    """Returns JPEG files, one of them turned, and a PNG file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"a.jpg": {"quality": 90}, "b.png": {}, "c.jpg": {"quality": 90, "exif": exif}, "d.jpg": {}}
    for seed, (name, options) in enumerate(files.items()):
        content = make.encoded(make.image(seed, (120, 90)), name[-3:], **options)
        (tmp_path / name).write_bytes(content)
    return FolderSource(tmp_path)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not cuda(), reason="needs a GPU"))]
)
def test_files_decoded_on_the_device_give_the_crops_of_files_decoded_by_workers(mixed, device):
    keys = [(epoch, index) for epoch in range(2) for index in (2, 0, 1, 3)]
    plain, on_device = (
        ImageDataset(mixed, 56, 3, AugmentConfig(gpu_decoding=on_gpu)) for on_gpu in (False, True)
    )
    assert "content" in on_device[keys[1]]
    expected = plain.finish(plain.collate([plain[key] for key in keys]), "cpu")
    batch = next(iter(keyed_loader(on_device, [keys], 1, torch.device(device))))
    images = on_device.finish(batch, device)
    assert images["labels"].tolist() == expected["labels"].tolist()
    difference = (images["images"].cpu() - expected["images"]).abs() * 127.5
    assert difference.mean() < (0.2 if device == "cpu" else 2)
    assert difference.max() < (3 if device == "cpu" else 40)
