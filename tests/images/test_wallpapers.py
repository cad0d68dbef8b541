import hashlib

import pytest
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.images import wallpapers
from ldmae.images.packages import Package
from ldmae.images.wallpapers import _SUBJECTS, prepare_wallpapers

from ..pictures import encoded, tarred


def write_package(path, names):
    """Writes a Debian package that holds photographs of noise and a copyright file."""
    photos = [
        encoded(Image.effect_noise((100, 70), 40 + k).convert("RGB"), "jpeg") for k in range(len(names))
    ]
    members = {f"./usr/share/{name}": photo for name, photo in zip(names, photos, strict=True)}
    data = tarred(members | {"./usr/share/doc/x/copyright": b"Copyright: somebody"}, "w:xz")
    content = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("odd", b"x"), ("data.tar.xz", data)):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(body):<10}`\n".encode() + body
        content += b"\n" * (len(body) % 2)
    path.write_bytes(content)
    return Package(f"https://nowhere.invalid/{path.name}", hashlib.sha256(content).hexdigest())


@pytest.fixture
def given(tmp_path, monkeypatch):
    folder = tmp_path / "given"
    folder.mkdir()
    package = write_package(
        folder / "a.deb",
        ["backgrounds/A.jpg", "backgrounds/drawn.jpg", "wallpapers/B/contents/images/9x9.jpg"],
    )
    monkeypatch.setattr(
        wallpapers, "_PACKAGES", {"a": package, "b": write_package(folder / "b.deb", ["C.jpg"])}
    )
    return folder


def test_all_crops_of_a_photograph_are_on_one_side_of_the_split(tmp_path, given, monkeypatch):
    monkeypatch.setattr(wallpapers, "_SUBJECTS", {"things": "A B C"})
    counts = prepare_wallpapers(tmp_path / "out", size=16, held_out=0.3, given=given)
    sides = {
        side: {path.name[0] for path in (tmp_path / "out" / side / "things").iterdir()}
        for side in ("train", "val")
    }
    assert len(sides["val"]) == 1
    assert sides["train"] | sides["val"] == {"A", "B", "C"}
    assert not sides["train"] & sides["val"]
    # 1, 2 and 4 crops of 16 px fit into 70 px, 8 do not; the longer side holds 1, 2 and 5 of them
    assert counts["val"]["things"] == {"crops": 1 + 2 * 2 + 4 * 5, "photographs": 1}
    with Image.open(next((tmp_path / "out" / "val" / "things").iterdir())) as crop:
        assert crop.size == (16, 16)
    licences = (tmp_path / "out" / "LICENCES.md").read_text()
    assert licences.count("Copyright: somebody") == 2
    assert "share-alike" in licences


def test_a_package_without_its_photographs_is_refused_and_nothing_is_left(tmp_path, given, monkeypatch):
    monkeypatch.setattr(wallpapers, "_SUBJECTS", {"things": "A absent"})
    with pytest.raises(UserError, match="lack the photographs absent"):
        prepare_wallpapers(tmp_path / "out", size=16, given=given)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "train").mkdir(parents=True)  # by the user, after that
    with pytest.raises(UserError, match="`ldmae prepare` did not make it"):
        prepare_wallpapers(tmp_path / "out", size=16, given=given)
    (tmp_path / "out" / "counts.json").write_text("3")
    with pytest.raises(UserError, match=r"counts\.json holds JSON of an unexpected form"):
        prepare_wallpapers(tmp_path / "out", size=16, given=given)


def test_every_subject_has_photographs_to_train_on_and_to_hold_out():
    names = [name for names in _SUBJECTS.values() for name in names.split()]
    assert len(names) == len(set(names)) == 36
    assert min(len(names.split()) for names in _SUBJECTS.values()) >= 3
