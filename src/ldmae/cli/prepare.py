"""The verbs that put together image sets which no package holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldmae.cli.options import examples
from ldmae.cli.output import say

app = typer.Typer(help="Assemble an image set from free packages.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(help="Output folder, for train/, val/ and LICENCES.md.")]
_Size = Annotated[int, typer.Option(help="Pixels along a side.", min=8)]
_HeldOut = Annotated[float, typer.Option(help="Share to hold out, in (0, 1).", min=0.01, max=0.99)]
_Given = Annotated[
    Path | None,
    typer.Option("--from", help="Folder with packages that you downloaded; nothing else is downloaded."),
]


@app.command(
    "emoji-sets",
    epilog=examples(
        "ldmae prepare emoji-sets emoji-sets", "ldmae prepare emoji-sets emoji-sets --from FOLDER"
    ),
)
def _emoji_sets(
    folder: _Folder,
    size: _Size = 64,
    held_out: _HeldOut = 0.15,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="twemoji, openmoji, noto or fluent; may be repeated. Default: all. Only openmoji is "
            "share-alike.",
        ),
    ] = None,
    given: _Given = None,
) -> None:
    """Emoji of four free sets in a dozen classes; a character is on one side of the split in all sets.

    It needs the extra `emoji-sets` and downloads 21 MB.
    """
    from ldmae.images.emoji_sets import SETS, prepare_emoji_sets

    counts = prepare_emoji_sets(folder, size=size, held_out=held_out, sets=sets or list(SETS), given=given)
    _say_counts(folder, counts)


def _say_counts(folder: Path, counts: dict[str, dict[str, dict[str, int]]]) -> None:
    for side, classes in counts.items():
        for name, of in sorted(classes.items()):
            say(f"{side:5} {name:10} " + "  ".join(f"{kind} {count}" for kind, count in sorted(of.items())))
    total = {
        side: sum(count for of in classes.values() for kind, count in of.items() if kind != "photographs")
        for side, classes in counts.items()
    }
    say(f"{total['train']:,} training images, {total['val']:,} held out: {folder}")


@app.command(
    "wallpapers",
    epilog=examples(
        "ldmae prepare wallpapers wallpapers", "ldmae prepare wallpapers wallpapers --from FOLDER"
    ),
)
def _wallpapers(folder: _Folder, size: _Size = 64, held_out: _HeldOut = 0.2, given: _Given = None) -> None:
    """Crops of the photographs in Debian's wallpaper packages, by subject; some are share-alike.

    All crops of a photograph are on one side of the split. It downloads 168 MB.
    """
    from ldmae.images.wallpapers import prepare_wallpapers

    _say_counts(folder, prepare_wallpapers(folder, size=size, held_out=held_out, given=given))
