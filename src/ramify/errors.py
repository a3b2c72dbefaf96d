"""Errors and warnings for users: the message states the key, the value found, the accepted values and the fix."""

import difflib
from collections.abc import Iterable


class RamifyError(Exception):
    """An error that the user can correct. The command line prints it without a traceback and exits with status 1.

    Args:
        message: description of the error, with the key or file and the value found.
        fix: how to correct it, in one sentence.

    Attributes:
        everywhere: every rank of the run raises the same error, so that only rank zero needs to print it.
    """

    everywhere = False

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


def error_text(error: Exception) -> str:
    """The message of an error; that of an error which is not for users begins with its type."""
    return str(error) if isinstance(error, RamifyError) else f"{type(error).__name__}: {error}"


def nearest(word: str, accepted: Iterable[str]) -> str:
    """Returns `", did you mean 'x'?"` for the accepted word closest to `word`, or an empty string if none is close."""
    match = difflib.get_close_matches(word, list(accepted), n=1, cutoff=0.6)
    return f", did you mean '{match[0]}'?" if match else ""


class RamifyWarning(UserWarning):
    """A result is returned but may be unreliable."""
