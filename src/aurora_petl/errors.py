"""What a user can meet, and how errors of libraries become one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from os import PathLike
from typing import Any

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last are bytes that are no UTF-8


class AuroraError(Exception):
    """One line that says what is wrong, where, and how to mend it."""

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught AuroraError in "):  # torch's words on a loader worker, with its whole traceback
            text = text.rstrip().rpartition("AuroraError: ")[2]
        return one_line(text)


class SharedError(AuroraError):
    """An error that every rank raises, so that the first one alone prints it."""


class Diverged(SharedError):
    """A training whose losses or weights are no numbers any more."""


def one_line(text: str, most: int | None = None) -> str:
    """Text with line ends, control characters and halves of surrogate pairs escaped: names of files hold any of them.

    Args:
        most: characters, of longer text the rest is cut; None cuts nothing.
    """
    cut = text if most is None or len(text) <= most else f"{text[:most]}..."
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)


class AuroraWarning(UserWarning):
    """What a user should know of what goes on; the ``aurora`` command prints it in one line."""


def install(extra: str) -> str:
    """How to install the package's optional part ``extra``, for messages; no index has the package."""
    return f"in the checkout of aurora-petl, run python -m pip install -e '.[{extra}]'"


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's own words on one line, without its full stop; its type if it has no words.

    Args:
        most: characters; longer lines are cut, since libraries may quote what they were given.
    """
    line = " ".join((str(error).strip().splitlines() or [""])[0].split()).rstrip(".")
    return (line if len(line) <= most else f"{line[:most]}...") or type(error).__name__


def short(value: object, most: int = 60) -> str:
    """A value as messages quote it. The quotation is bounded before it is formed: ``repr`` of a nested value that a
    file holds may take gigabytes."""
    if isinstance(value, str):
        text = repr(value[: most + 1])
    elif isinstance(value, (bool, float, type(None))):
        text = repr(value)
    elif isinstance(value, int):
        text = repr(value) if value.bit_length() < 4 * most else f"a number of {value.bit_length():,} bits"
    elif isinstance(value, (list, tuple, dict, set)):
        return f"a {type(value).__name__} of {len(value)}" if len(value) else f"an empty {type(value).__name__}"
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= most + 2 else f"{text[:most]}..."


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "there are", prefix: str = "") -> str:
    """The end of a message about a name that is none of the ``known`` ones: the nearest one, behind ``prefix``, or all
    of them behind ``otherwise``."""
    known = list(known)
    close = difflib.get_close_matches(name[:100], known, 1)
    return f"did you mean {prefix}{close[0]}?" if close else f"{otherwise} {', '.join(known)}"


def check_name(what: str, value: object) -> None:
    """Check that a name or path was given.

    Raises:
        AuroraError: if it is anything else, such as a table or a model.
    """
    if not isinstance(value, (str, PathLike)):
        raise AuroraError(f"{what} is {short(value)}; give a name or the path of a folder or file")


def whole_number(what: str, value: Any, least: int) -> int:
    """A number that was given from Python, as an int.

    Raises:
        AuroraError: if it is no whole number or below ``least``.
    """
    if hasattr(value, "__index__") and value >= least:
        return int(value)
    raise AuroraError(f"{what} is {short(value)}; it must be a whole number of at least {least}")
