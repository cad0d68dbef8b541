import hashlib
import json
from contextlib import ExitStack

import pytest
from PIL import Image

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.images import emoji_sets
from ldmae.images.emoji_sets import _family, prepare_emoji_sets
from ldmae.images.index import open_images
from ldmae.images.packages import Package, drawn, fetch

from ..pictures import encoded, tarred
from ..serving import Quiet, serving

CODES = [
    "1f600",
    "1f603",
    "1f604",
    "1f431",
    "1f436",
    "1f43b",
    "1f34e",
    "1f34f",
    "1f44b-1f3fb",
    "e000",
    "1f3b7",
]


@pytest.fixture
def fluent(tmp_path, monkeypatch):
    """A small package of the kind that the 3D set comes in."""
    folder = tmp_path / "given"
    folder.mkdir()
    path = folder / "fluent.tgz"
    drawn = [Image.new("RGBA", (32, 24), (200, 10 * number, 40, 255)) for number in range(len(CODES))]
    members = {
        f"package/assets/{code}.webp": encoded(image, "webp", lossless=True)
        for code, image in zip(CODES, drawn, strict=True)
    }
    path.write_bytes(tarred(members, "w:gz"))
    package = Package("https://nowhere.invalid/fluent.tgz", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(emoji_sets, "_FLUENT", package)
    return folder


def test_a_character_is_on_one_side_of_the_split_in_all_sets(tmp_path, fluent):
    counts = prepare_emoji_sets(
        tmp_path / "out", size=16, held_out=0.3, sets=["twemoji", "fluent"], given=fluent
    )
    sides = {
        side: {path.stem.rpartition("-")[0] for path in (tmp_path / "out" / side).rglob("*.png")}
        for side in ("train", "val")
    }
    assert not sides["train"] & sides["val"]
    assert len({_family(points) for points in sides["val"]} & {_family(p) for p in sides["train"]}) == 0
    assert counts["train"]["faces"]["twemoji"] > 50
    taken = {path.stem for path in (tmp_path / "out").rglob("*-fluent.png")}
    assert taken == {f"{code}-fluent" for code in CODES if code not in ("1f44b-1f3fb", "e000")}
    picture = Image.open(next((tmp_path / "out").rglob("1f600-fluent.png")))
    assert (picture.size, picture.mode, picture.getpixel((0, 0))) == ((16, 16), "RGB", (255, 255, 255))
    licences = (tmp_path / "out" / "LICENCES.md").read_text()
    assert "*-fluent.png`: Fluent Emoji (3D), MIT" in licences
    assert "OpenMoji" not in licences


def test_prepared_emoji_are_read_with_those_without_a_class(tmp_path, fluent):
    out = tmp_path / "out"
    prepare_emoji_sets(out, size=16, sets=["fluent"], given=fluent)
    config = DataConfig(source=str(out / "train"), val=str(out / "val"), classes=["faces", "animals", "food"])
    train, held_out = open_images(config, tmp_path / "data", progress=False)
    assert train.classes == held_out.classes == ["faces", "animals", "food"]
    assert len(train) + len(held_out) == 9
    assert -1 in [*train.labels, *held_out.labels]


def test_characters_that_differ_in_gender_or_direction_alone_are_one_family():
    doctors = ["1f468-200d-2695", "1f469-200d-2695", "1f9d1-200d-2695"]
    runners = ["1f3c3", "1f3c3-200d-2640", "1f3c3-200d-2642-200d-27a1"]
    assert len({_family(points) for points in doctors}) == len({_family(points) for points in runners}) == 1
    assert _family("1f600") != _family("1f603")


def test_an_unknown_emoji_set_proposes_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"no emoji set 'twemojis' \(did you mean 'twemoji'\?\)|did you mean"):
        prepare_emoji_sets(tmp_path, sets=["twemojis"])


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"another file")
    with pytest.raises(UserError, match=r"has SHA-256 .*, expected 00; delete it"):
        fetch(Package("https://nowhere.invalid/a.tgz", "00"), tmp_path)


def test_a_download_without_network_says_where_to_put_the_file(tmp_path):
    package = Package((tmp_path / "absent" / "a.tgz").as_uri(), "00")
    with pytest.raises(UserError, match=r"a\.tgz could not be downloaded .*--from"):
        fetch(package, tmp_path)
    with pytest.raises(UserError, match=r"has no a\.tgz; download file:"):
        fetch(package, tmp_path, given=tmp_path)


def test_an_interrupted_download_continues(tmp_path, served):
    content = bytes(range(256)) * 40
    url, asked = served(content)
    (tmp_path / "a.bin.part").write_bytes(content[:1000])
    path = fetch(Package(f"{url}/a.bin", hashlib.sha256(content).hexdigest()), tmp_path)
    assert path.read_bytes() == content
    assert asked == ["bytes=1000-"]


@pytest.fixture
def served():
    """Serves one content, whatever is asked for, and notes the ranges."""
    with ExitStack() as opened:

        def serve(content):
            asked = []

            class Handler(Quiet):
                def do_GET(self):
                    wanted = self.headers["Range"]
                    asked.append(wanted)
                    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                    self.send_response(206 if wanted else 200)
                    self.end_headers()
                    self.wfile.write(content[start:])

            return opened.enter_context(serving(Handler)), asked

        yield serve


def test_images_of_ones_own_are_not_replaced(tmp_path, fluent):
    (tmp_path / "val" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="val exists, and `ldmae prepare` did not make it"):
        prepare_emoji_sets(tmp_path, size=16, sets=["fluent"], given=fluent)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["cats", "fluent.tgz"]
    for _ in range(2):  # its own output is made again
        prepare_emoji_sets(tmp_path / "out", size=16, sets=["fluent"], given=fluent)


def test_a_set_that_was_stopped_before_it_was_described_is_made_again(tmp_path, fluent, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(emoji_sets, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_emoji_sets(tmp_path / "out", size=16, sets=["fluent"], given=fluent)
    prepare_emoji_sets(tmp_path / "out", size=16, sets=["fluent"], given=fluent)
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["counts"]["train"]


def test_a_class_of_a_single_family_is_not_all_held_out():
    assert drawn(["a"], 0.9) == []
    assert len(drawn(["a", "b", "c"], 0.99)) == 2
