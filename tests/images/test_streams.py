import bz2
import functools
import gzip
import logging
import lzma

import pytest
from torch.utils.data import DataLoader

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.images import streams
from ldmae.images.dataset import StreamDataset
from ldmae.images.streams import open_stream
from ldmae.run.stream_cache import open_streamed

from ..serving import Quiet, serving


class Breaking(Quiet):
    cut_once: set[str] = set()  # noqa: RUF012, the test fills it

    def copyfile(self, source, outputfile):
        if self.path in self.cut_once:  # a connection that breaks half way, once
            self.cut_once.discard(self.path)
            outputfile.write(source.read(4096))
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)


@pytest.fixture
def served(make, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_WAIT_SECONDS", 0.0)
    for k in range(4):
        members = []
        for j in range(10):
            members += [
                (f"{k}{j}.png", make.encoded(make.image(10 * k + j))),
                (f"{k}{j}.cls", str(j % 3).encode()),
            ]
        make.tar(tmp_path / f"{k}.tar", members)
    with serving(functools.partial(Breaking, directory=str(tmp_path))) as url:
        yield url


def config(served, **changes):
    return DataConfig(**{"source": f"{served}/{{0..3}}.tar", "classes": ["a", "b", "c"], **changes})


def pixels(items):
    return [image.tobytes() for image, _ in items]


PACKED = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


@pytest.mark.parametrize(("name", "pack"), PACKED.items())
def test_archives_joined_end_to_end_are_streamed_to_the_last(served, tmp_path, name, pack):
    joined = b"".join(pack((tmp_path / f"{k}.tar").read_bytes()) for k in range(4))
    (tmp_path / f"joined.{name}").write_bytes(joined)
    expected = sorted(pixels(open_stream(config(served)).iterate(0, 0, part="all")))
    for place in (served, str(tmp_path)):
        stream = open_stream(config(served, source=f"{place}/joined.{name}", stream=True))
        assert sorted(pixels(stream.iterate(0, 0, part="all"))) == expected
    (tmp_path / f"joined.{name}").write_bytes(joined[:-3000] if pack is not bytes else joined[:-30_000])
    with pytest.raises(UserError, match=r"after [23]. images"):
        list(stream.iterate(0, 0, part="all"))
    if pack is not bytes:  # a later archive that is damaged at its beginning, behind zeros that are none
        path = tmp_path / f"joined.{name}"
        first, second = (pack((tmp_path / f"{k}.tar").read_bytes()) for k in (0, 1))
        path.write_bytes(first + bytes(8) + second)
        assert len(list(stream.iterate(0, 0, part="all"))) == 20
        path.write_bytes(first + second[5:])
        with pytest.raises(UserError, match="after 9 images"):
            list(stream.iterate(0, 0, part="all"))


@pytest.mark.parametrize("before", [b"", None])
def test_what_is_no_archive_is_refused_and_not_passed_over(served, tmp_path, before):
    path = tmp_path / "3.tar"
    path.write_bytes((path.read_bytes() if before is None else before) + b"<html>sign in</html>".ljust(2048))
    with pytest.raises(UserError, match=r"cannot read .*3\.tar"):
        list(open_stream(config(served)).iterate(0, 0, part="all"))


def test_remote_shards_yield_every_image_once_in_a_seeded_order(make, served):
    source = open_stream(config(served))
    first = list(source.iterate(0, 0, part="all"))
    assert sorted(pixels(first)) == sorted(make.image(k).tobytes() for k in range(40))
    number = {make.image(k).tobytes(): k for k in range(40)}
    assert all(label == number[image.tobytes()] % 10 % 3 for image, label in first)
    assert pixels(source.iterate(0, 0, part="all")) == pixels(first)
    assert pixels(source.iterate(0, 1, part="all")) != pixels(first)
    assert pixels(source.iterate(1, 0, part="all")) != pixels(first)


def test_parts_are_disjoint_and_complete(served):
    source = open_stream(config(served, val="0.3"))
    train, held_out = (set(pixels(source.iterate(0, 0, part=part))) for part in ("train", "held_out"))
    assert len(train) + len(held_out) == len(train | held_out) == 40
    assert 4 <= len(held_out) <= 22


@pytest.mark.parametrize("world", [2, 3, 8])  # fewer, as many, and more readers than shards
def test_processes_share_the_images(served, world):
    source = open_stream(config(served))
    shares = [pixels(source.iterate(0, 0, rank, world, part="all")) for rank in range(world)]
    assert all(shares)
    everything = [image for share in shares for image in share]
    assert len(everything) == len(set(everything)) == 40


def test_workers_share_the_images(served):
    dataset = StreamDataset(open_stream(config(served, val="1e-9")), 16)
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    images = [image.numpy().tobytes() for batch in loader for image in batch["pixels"]]
    assert len(images) == len(set(images)) == 40


def test_broken_connection_is_taken_up_where_it_broke(make, served, caplog):
    Breaking.cut_once.add("/2.tar")
    with caplog.at_level(logging.WARNING):
        items = list(open_stream(config(served)).iterate(0, 0, part="all"))
    assert sorted(pixels(items)) == sorted(make.image(k).tobytes() for k in range(40))
    assert "broke off" in caplog.text


def test_stream_says_aloud_that_its_resume_is_not_exact(served, caplog):
    with caplog.at_level(logging.WARNING):
        open_stream(config(served))
    assert "not with the images that would have come next" in caplog.text


def test_missing_shard_and_unknown_label_are_user_errors(served):
    with pytest.raises(UserError, match=r"9.tar after 0 images.*404"):
        list(open_stream(config(served, source=f"{served}/9.tar")).iterate(0, 0))
    with pytest.raises(UserError, match=r"data\.classes"):
        list(open_stream(config(served, classes=["a", "b"])).iterate(0, 0))


def test_classes_that_are_numbers_are_known_by_name_not_by_place(make, served, tmp_path):
    members = []
    for j in (1, 2, 3):
        members += [(f"n{j}.png", make.encoded(make.image(j))), (f"n{j}.cls", str(j).encode())]
    make.tar(tmp_path / "n.tar", members)
    numbered = config(served, source=f"{served}/n.tar", classes=["1", "2", "3"])
    assert sorted(label for _, label in open_stream(numbered).iterate(0, 0, part="all")) == [0, 1, 2]
    with pytest.raises(UserError, match="has the label 3, for which there is no class"):
        list(open_stream(numbered.replace(classes=["0", "1", "2"])).iterate(0, 0, part="all"))


@pytest.mark.parametrize(
    ("name", "what"), [("digits", "comes with the package"), ("mine:Pairs", "is a source of your own")]
)
def test_a_set_of_the_package_and_a_source_of_ones_own_are_not_streamed(name, what):
    with pytest.raises(UserError, match=f"data={name} {what} and is not streamed; omit data.stream"):
        open_stream(DataConfig(source=name, stream=True))


def test_images_of_a_stream_in_folders_of_no_class_are_told(make, tmp_path):
    members = [(f"{name}/{k}.png", make.encoded(make.image(k))) for k, name in enumerate(["cat", "dog"] * 20)]
    make.tar(tmp_path / "a.tar", members)
    named = DataConfig(source=f"{tmp_path}/a.tar", stream=True, val="0.3", classes=["cat", "dogs"])
    _, kept, _ = open_streamed(named, tmp_path / "kept")
    without, absent = kept.facts
    assert without.startswith("of those kept: ")
    assert without.endswith("images without a label")
    assert absent == 'of those kept: class "dogs" has no image'


def test_stream_without_classes_is_one_class_and_says_that_labels_are_passed_over(served, caplog):
    source = open_stream(config(served, classes=None))
    with caplog.at_level(logging.WARNING):
        assert {label for _, label in source.iterate(0, 0)} == {0}
        list(source.iterate(0, 1))
    assert len(source.classes) == 1
    assert caplog.text.count("labels are ignored") == 1


def test_members_of_the_same_name_are_images_of_their_own(make, served, tmp_path):
    make.tar(tmp_path / "twice.tar", [("a.png", make.encoded(make.image(k))) for k in range(2)])
    source = open_stream(config(served, source=str(tmp_path / "twice.tar"), stream=True))
    assert sorted(pixels(source.iterate(0, 0, part="all"))) == sorted(
        make.image(k).tobytes() for k in range(2)
    )


def test_unreadable_images_of_a_stream_are_borne_up_to_the_limit(make, served, tmp_path):
    make.tar(tmp_path / "bad.tar", [(f"{k}.png", b"no picture") for k in range(3)])
    bad = config(served, source=str(tmp_path / "bad.tar"), stream=True, max_unreadable=0.002)
    with pytest.raises(UserError, match=r"3 of the first 3 images of bad are unreadable"):
        list(open_stream(bad).iterate(0, 0, part="all"))
    borne = config(served, source=str(tmp_path / "bad.tar"), stream=True, max_unreadable=0.5)
    assert list(open_stream(borne).iterate(0, 0, part="all")) == []


def test_stream_of_class_folders_without_classes_says_that_they_are_passed_over(make, tmp_path, caplog):
    names = ("cats/1.png", "dogs/2.png")
    make.tar(tmp_path / "a.tar", [(name, make.encoded(make.image(k))) for k, name in enumerate(names)])
    with caplog.at_level(logging.WARNING):
        stream = open_stream(DataConfig(source=str(tmp_path / "a.tar"), stream=True))
        assert [label for _, label in stream.iterate(0, 0, part="all")] == [0, 0]
    assert "labels are ignored" in caplog.text


def test_settings_that_a_stream_does_not_read_are_refused(make, tmp_path):
    make.tar(tmp_path / "a.tar", [("1.png", make.encoded(make.image(1)))])
    streamed = DataConfig(source=str(tmp_path / "a.tar"), stream=True)
    for changes in ({"split": "test"}, {"image_column": "jpg"}):
        with pytest.raises(UserError, match=r"has no splits|data\.image_column is for a table"):
            open_stream(streamed.replace(**changes))
