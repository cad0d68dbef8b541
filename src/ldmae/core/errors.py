"""The one error class that is meant for users."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend.

    The message says what, what was got, what was expected, and the next move. The command line
    prints the message alone and exits with code 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the valid name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
