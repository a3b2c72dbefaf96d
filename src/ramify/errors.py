"""The one error type a user is meant to see: a message that names the key, the value, what is accepted and the fix.

And the one warning.
"""

import difflib
from collections.abc import Iterable


class RamifyError(Exception):
    """Something the user can act on. The command line prints its text without a traceback and exits with status 1.

    Args:
        message: what is wrong, naming the key or file and the value found.
        fix: what to do about it, in one sentence.

    Attributes:
        everywhere: every rank of the run raises the same error, so that it is enough if the first one prints it.
    """

    everywhere = False

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


def nearest(word: str, accepted: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the accepted word closest to `word`, or an empty string when none is close."""
    match = difflib.get_close_matches(word, list(accepted), n=1, cutoff=0.6)
    return f", did you mean '{match[0]}'?" if match else ""


class RamifyWarning(UserWarning):
    """A number is given, but there is a reason to doubt it."""
