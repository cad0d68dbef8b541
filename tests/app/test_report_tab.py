import base64

from ldmae.app.report_tab import _LARGEST, _read_card, _text


def test_a_report_is_read_as_it_is_if_it_is_not_too_large_to_be_one(tmp_path):
    path = tmp_path / "report.html"
    assert _text(path) is None
    path.write_text("<h1>ε</h1>", encoding="utf-8")
    assert _text(path) == "<h1>ε</h1>"
    with path.open("wb") as file:
        file.truncate(_LARGEST + 1)
    assert _text(path) is None


def test_a_card_is_shown_without_its_metadata(tmp_path):
    assert _read_card(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n\n# Model\n\n---\nmore")
    assert _read_card(tmp_path) == "# Model\n\n---\nmore"
    (tmp_path / "README.md").write_text("\ufeff---\n---\n# Model\n\n---\nmore", encoding="utf-8")
    assert _read_card(tmp_path) == "# Model\n\n---\nmore"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert _read_card(tmp_path) is None


def test_the_pictures_of_a_card_come_with_it_and_nothing_is_fetched(tmp_path):
    content = b"\x89PNG..."
    folder = tmp_path / "model"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "grid.png").write_bytes(content)
    (tmp_path / "secret.png").write_bytes(content)
    (folder / "README.md").write_text(
        '![a grid](docs/grid.png "title") ![far](https://example.org/x.png) ![out](../secret.png) '
        "![none](gone.png) ![text](README.md) ![null](a\0.png) <img src='https://example.org/y.png'>"
    )
    inside = "data:image/png;base64," + base64.b64encode(content).decode()
    assert _read_card(folder) == f"![a grid]({inside}) *far* *out* *none* *text* *null*"
