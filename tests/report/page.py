"""What a test reads of a page."""

import html.parser
from pathlib import Path


class Page(html.parser.HTMLParser):
    """What a page is made of: its tags, the addresses that it names, its text, whether its tags close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "source", "br", "wbr"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "action", "data", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def assert_alone(self) -> None:
        """Asserts that it needs no other file, and that its own links lead somewhere."""
        assert self.addresses
        assert all(address.startswith(("data:", "#")) for address in self.addresses)
        assert {address[1:] for address in self.addresses if address[0] == "#"} <= set(self.ids)
        assert "script" not in self.tags
        assert "url(" not in self.source
        assert "@import" not in self.source

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += " " + " ".join(data.split())


def section(page: Page, name: str) -> str:
    return page.source.split(f'id="{name}"')[1].split("</section>")[0]
