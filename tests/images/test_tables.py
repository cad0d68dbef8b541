import base64
import os

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.images.dataset import StreamDataset
from ldmae.images.index import open_images
from ldmae.images.sources import open_source
from ldmae.images.split import as_others
from ldmae.images.streams import open_stream
from ldmae.images.tables import TableSource

CONFIGURATIONS = {"default": "data.parquet", "other": "other/x.parquet"}
"""Files by configuration, of a clone from the Hub."""


@pytest.fixture(autouse=True)
def quiet_and_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def table(make, count=6, first=0, **columns):
    rows = {"image": [{"bytes": make.encoded(make.image(first + k)), "path": None} for k in range(count)]}
    return {**rows, "label": [k % 3 for k in range(count)], **columns}


def typed(make, count=6, first=0):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])}
    )
    return datasets.Dataset.from_dict(table(make, count, first), features=features)


def test_parquet_folder_with_types_is_found_and_read_by_index(make, tmp_path):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    typed(make).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    typed(make, 3).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    config = DataConfig(source=str(folder))
    source = open_source(config, tmp_path / "cache")
    assert isinstance(source, TableSource)
    assert source.classes == ["ant", "bee", "cow"]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for k in (5, 0, 3):
        assert source.read(k).tobytes() == make.image(k).tobytes()
    assert source.fingerprint() == open_source(config, tmp_path / "cache").fingerprint()
    test = open_source(DataConfig(source=str(folder), split="test"), tmp_path / "cache")
    assert len(test) == 3


def test_tables_in_hidden_folders_are_none_of_the_folders(make, tmp_path):
    for place in (".Trash-1000", "."):
        (tmp_path / "set" / place).mkdir(parents=True, exist_ok=True)
        typed(make).to_parquet(tmp_path / "set" / place / "part-0.parquet")
    assert len(open_source(DataConfig(source=str(tmp_path / "set")), tmp_path / "cache")) == 6


def test_held_out_images_may_be_another_split(make, tmp_path):
    (tmp_path / "set").mkdir()
    typed(make).to_parquet(tmp_path / "set" / "train.parquet")
    typed(make, 3, first=6).to_parquet(tmp_path / "set" / "test.parquet")
    train, held_out = open_images(
        DataConfig(source=str(tmp_path / "set"), val="split:test"), tmp_path / "cache", progress=False
    )
    assert (len(train), len(held_out)) == (6, 3)
    assert held_out.classes == train.classes


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_table_rewritten_at_the_same_size_is_read_again(make, tmp_path, kind):
    def write(first):
        rows = {
            "image": [
                {"bytes": make.encoded(make.image(k), "bmp"), "path": None} for k in range(first, first + 9)
            ]
        }
        made = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
        path = tmp_path / f"all.{kind}"
        if kind == "parquet":
            pq.write_table(made.data.table, path, compression="none")
        else:
            path.unlink(missing_ok=True)
            made.save_to_disk(tmp_path / f"saved{first}")
            next((tmp_path / f"saved{first}").glob("*.arrow")).rename(path)
        return path

    def read(path):
        train, _ = open_images(DataConfig(source=str(path), val="0.3"), tmp_path / "c", progress=False)
        return {train.read(k).tobytes() for k in range(len(train))}, train.fingerprint()

    one = read(write(0))
    before = (tmp_path / f"all.{kind}").stat()
    path = write(50)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying may
    assert path.stat().st_size == before.st_size
    other = read(path)
    assert not one[0] & other[0]
    assert one[1] != other[1]


def test_files_that_have_no_splits_hold_none_out(make, tmp_path):
    typed(make).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(UserError, match=r"split 'test'.*Unknown split \"test\""):
        open_images(
            DataConfig(source=str(tmp_path / "all.parquet"), val="split:test"), tmp_path, progress=False
        )


def test_copy_of_a_hub_dataset_in_a_folder_named_after_its_configuration_is_found(make, tmp_path):
    (tmp_path / "set" / "plain_text").mkdir(parents=True)
    typed(make).to_parquet(tmp_path / "set" / "plain_text" / "train-00000-of-00001.parquet")
    assert len(open_source(DataConfig(source=str(tmp_path / "set")), tmp_path / "cache")) == 6


def test_plain_parquet_file_with_bytes_and_named_labels(make, tmp_path):
    labels = pa.array(["x", "y", None, "x"])
    content = [make.encoded(make.image(k)) for k in range(4)]
    pq.write_table(pa.table({"picture": content, "kind": labels, "id": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    source = TableSource(str(tmp_path / "a.parquet"), label_column="kind")
    assert source.classes == ["x", "y"]
    assert source.labels.tolist() == [0, 1, -1, 0]
    assert source.read(2).tobytes() == make.image(2).tobytes()


def test_table_without_labels_is_one_class(make, tmp_path):
    pq.write_table(pa.table({"image": table(make)["image"]}), tmp_path / "leaves.parquet")
    source = TableSource(str(tmp_path / "leaves.parquet"))
    assert source.classes == ["leaves"]
    assert source.labels.tolist() == [0] * 6


def test_dataset_saved_to_disk_is_read_where_it_lies(make, tmp_path):
    datasets.DatasetDict(train=typed(make), test=typed(make, 2)).save_to_disk(tmp_path / "saved")
    source = open_source(DataConfig(source=str(tmp_path / "saved"), split="test"))
    assert len(source) == 2
    assert source.read(1).tobytes() == make.image(1).tobytes()
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean 'test'"):
        open_source(DataConfig(source=str(tmp_path / "saved"), split="tset"))
    arrow = next((tmp_path / "saved" / "train").glob("*.arrow"))
    assert len(open_source(DataConfig(source=str(arrow)))) == 6


def test_columns_that_are_missing_or_ambiguous_are_named(make, tmp_path):
    content = [make.encoded(make.image(k)) for k in range(2)]
    pq.write_table(pa.table({"left": content, "right": content}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"several columns .* data.image_column"):
        TableSource(str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="no column 'rihgt'; did you mean 'right'"):
        TableSource(str(tmp_path / "a.parquet"), image_column="rihgt")
    chosen = TableSource(str(tmp_path / "a.parquet"), image_column="right")
    assert len(chosen) == 2


def test_hub_dataset_that_cannot_be_reached_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot open nobody/nothing.*Hub"):
        open_source(DataConfig(source="nobody/nothing"), tmp_path)


def test_table_is_streamed_with_its_class_names(make, tmp_path):
    for k in range(3):
        part = typed(make, 9).select(range(3 * k, 3 * k + 3))
        part.to_parquet(tmp_path / f"train-{k:05}-of-00003.parquet")
    source = open_stream(DataConfig(source=str(tmp_path), stream=True))
    assert source.classes == ["ant", "bee", "cow"]
    number = {make.image(k).tobytes(): k for k in range(9)}
    found = {number[image.tobytes()]: label for image, label in source.iterate(0, 0, part="all")}
    assert found == {k: k % 3 for k in range(9)}
    shares = [list(source.iterate(0, 0, rank, 2, part="all")) for rank in range(2)]
    assert sum(map(len, shares)) == 9
    item = next(iter(StreamDataset(source, 16)))
    assert item["pixels"].shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("column", "values", "classes", "labels"),
    [
        ("Label", [1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
        ("target", [True, False, True], ["False", "True"], [1, 0, 1]),
        ("CLASS", ["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ("label", [30_000_002, 7, 30_000_002], ["7", "30000002"], [1, 0, 1]),
    ],
)
def test_labels_are_found_whatever_the_case_and_kind(make, tmp_path, column, values, classes, labels):
    content = [make.encoded(make.image(k)) for k in range(3)]
    pq.write_table(pa.table({"image": content, column: values}), tmp_path / "a.parquet")
    source = TableSource(str(tmp_path / "a.parquet"))
    assert (source.classes, source.labels.tolist()) == (classes, labels)
    assert source.facts == []


def test_columns_that_cannot_label_are_said(make, tmp_path):
    content = [make.encoded(make.image(k)) for k in range(2)]
    columns = {"image": content, "label": [[1, 2], [3]], "score": [0.5, 0.25]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = TableSource(str(tmp_path / "a.parquet"))
    assert source.classes == ["a"]
    assert source.facts == [
        "no column of labels among label (list), score (float64): name one with data.label_column"
    ]
    source = TableSource(str(tmp_path / "a.parquet"), label_column="score")
    assert source.facts == ["2 values of the column 'score' ignored: neither a whole number nor a name"]
    pq.write_table(pa.table({**columns, "score": [0.5, 1]}), tmp_path / "b.parquet")
    source = TableSource(str(tmp_path / "b.parquet"), label_column="score")
    assert source.facts == ["1 value of the column 'score' ignored: neither a whole number nor a name"]


def test_images_as_base64_text_or_as_paths_are_read(make, tmp_path):
    content = make.encoded(make.image(1))
    (tmp_path / "x.png").write_bytes(content)
    texts = [base64.b64encode(content).decode(), str(tmp_path / "x.png"), "x" * 500_000 + "!"]
    pq.write_table(pa.table({"image": texts}), tmp_path / "a.parquet")
    source = TableSource(str(tmp_path / "a.parquet"))
    assert source.read_bytes(0) == source.read_bytes(1) == content
    with pytest.raises(UserError) as caught:
        open_images(DataConfig(source=str(tmp_path / "a.parquet")), tmp_path / "cache", progress=False)
    assert len(str(caught.value)) < 600


def test_column_that_holds_no_images_is_refused_in_a_line(make, tmp_path):
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"the column 'image' .* expected images"):
        TableSource(str(tmp_path / "a.parquet"), image_column="image")
    pq.write_table(
        pa.table({"image": [make.encoded(make.image(1))], "label": ["cat"]}), tmp_path / "b.parquet"
    )
    with pytest.raises(UserError, match=r"'label' of .* would be both its images and its labels; name the"):
        TableSource(str(tmp_path / "b.parquet"), image_column="label")


def test_indices_of_classes_that_are_called_by_numbers_are_taken_as_indices(make, tmp_path):
    names = sorted(map(str, range(12)))  # "10" is the third
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    made = datasets.Dataset.from_dict(table(make, 12, label=[*range(12)]), features=features)
    made.to_parquet(tmp_path / "all.parquet")
    config = DataConfig(source=str(tmp_path / "all.parquet"))
    labels = {make.image(k).tobytes(): k for k in range(12)}
    streamed = open_stream(config.replace(stream=True)).iterate(0, 0, part="all")
    assert {image.tobytes(): label for image, label in streamed} == labels
    assert open_source(config).labels.tolist() == [*range(12)]


def test_every_table_file_of_a_folder_or_a_pattern_is_read_or_missed(make, tmp_path):
    typed(make).to_parquet(tmp_path / "a.parquet")
    typed(make, 3).to_parquet(tmp_path / "B.PARQUET")
    (tmp_path / "notes.json").write_text("{}")
    assert len(open_source(DataConfig(source=str(tmp_path)))) == 9
    with pytest.raises(UserError, match=r"no file matches .*c\.parquet"):
        open_source(DataConfig(source=f"{tmp_path}/{{a,c}}.parquet"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_a_split_of_a_table_without_splits_is_refused(make, tmp_path, kind):
    path = tmp_path / f"all.{kind}"
    if kind == "parquet":
        typed(make).to_parquet(path)
    else:
        typed(make).save_to_disk(tmp_path / "all.saved")
    if kind == "arrow":
        next((tmp_path / "all.saved").glob("*.arrow")).rename(path)
    with pytest.raises(UserError, match="'test'"):
        open_source(DataConfig(source=str(path), split="test"))


def test_settings_of_a_table_are_not_asked_of_held_out_images_of_another_kind(make, tmp_path):
    typed(make).rename_column("image", "photo").to_parquet(tmp_path / "all.parquet")
    make.folder(tmp_path / "val", {name: [20 + k] for k, name in enumerate(("ant", "bee", "cow"))})
    config = DataConfig(source=str(tmp_path / "all.parquet"), image_column="photo", val=str(tmp_path / "val"))
    _, held_out = open_images(config, tmp_path / "cache", progress=False)
    assert held_out.labels.tolist() == [0, 1, 2]
    assert as_others(config, config.source).image_column == "photo"


def test_held_out_tables_may_have_fewer_of_sparse_labels_and_must_have_some(make, tmp_path):
    labels = {"train": [10, 20, 500, 900], "val": [10, 20] * 2, "two": ["ant", "bee"] * 2, "ant": ["ant"] * 4}
    for first, (name, each) in enumerate(labels.items()):
        pq.write_table(pa.table(table(make, 4, 9 * first, label=each)), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"image": table(make, 3, 40)["image"]}), tmp_path / "bare.parquet")
    config = DataConfig(source=f"{tmp_path}/train.parquet", val=f"{tmp_path}/val.parquet")
    train, held_out = open_images(config, tmp_path / "cache")
    assert train.classes == held_out.classes == ["10", "20", "500", "900"]
    assert sorted(held_out.labels.tolist()) == [0, 0, 1, 1]
    called = config.replace(source=f"{tmp_path}/two.parquet", val=f"{tmp_path}/ant.parquet")
    assert open_images(called, tmp_path / "cache")[1].labels.tolist() == [0] * 4  # a file after its class
    with pytest.raises(UserError, match="are without labels, so their classes are unknown"):
        open_images(config.replace(val=f"{tmp_path}/bare.parquet"), tmp_path / "cache")


def test_a_table_file_without_rows_is_told_and_a_truncated_one_is_named(make, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    typed(make).to_parquet(folder / "a.parquet")
    empty = folder / "b.parquet"
    pq.write_table(pq.read_table(folder / "a.parquet").slice(0, 0), empty)
    source = open_source(DataConfig(source=str(folder)))
    assert len(source) == 6
    assert "no rows in 1 file: b.parquet" in source.facts
    with pytest.raises(UserError, match=r"b\.parquet has no rows"):
        open_source(DataConfig(source=str(empty)))
    empty.write_bytes((folder / "a.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"b\.parquet is truncated or not a parquet file"):
        open_source(DataConfig(source=str(folder)))


def test_a_damaged_table_of_another_configuration_and_folders_called_as_tables_do_no_harm(make, tmp_path):
    (tmp_path / "hub" / "other").mkdir(parents=True)
    typed(make).to_parquet(tmp_path / "hub" / "data.parquet")
    (tmp_path / "hub" / "other" / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    configs = "\n".join(f"- {{config_name: {n}, data_files: {f}}}" for n, f in CONFIGURATIONS.items())
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    assert len(open_source(DataConfig(source=str(tmp_path / "hub")))) == 6
    (tmp_path / "spark" / "whole.parquet").mkdir(parents=True)
    typed(make).to_parquet(tmp_path / "spark" / "whole.parquet" / "part-0.parquet")
    assert len(open_source(DataConfig(source=str(tmp_path / "spark")))) == 6


def test_what_is_wrong_with_a_damaged_table_is_told_and_the_network_is_not_blamed(make, tmp_path):
    pq.write_table(pa.table(table(make)), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:8] + bytes(392) + content[400:])
    with pytest.raises(UserError, match=r"check data\.source, data\.split, the file$") as told:
        open_source(DataConfig(source=f"{tmp_path}/a.parquet"), tmp_path / "cache")
    assert "An error occurred while generating" not in str(told.value)
