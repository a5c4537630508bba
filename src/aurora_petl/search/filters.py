"""Which pictures of a library a query is about: those of a folder, those of a time."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from ..errors import AuroraError, short

_DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?")


@dataclass(frozen=True)
class Filter:
    """Pictures below a folder, from a date on, up to a date; a picture's date is `manifest.Picture.date`.

    Args:
        under: a folder below the indexed one, relative to it; empty for all.
        after: the earliest date, itself included.
        before: the earliest date that is too late.
    """

    under: str = ""
    after: datetime | None = None
    before: datetime | None = None

    def __bool__(self) -> bool:
        """Whether it leaves out anything."""
        return bool(self.under) or self.after is not None or self.before is not None

    def __str__(self) -> str:
        parts = [f"under {self.under}" if self.under else ""]
        parts += [f"{name} {day.isoformat(' ')}" for name in ("after", "before") if (day := getattr(self, name))]
        return " ".join(part for part in parts if part)

    def bounds(self) -> tuple[str, str]:
        """The paths of ``under`` are those from the first bound on, before the second, by code points."""
        return f"{self.under}/", f"{self.under}0"  # 0 comes behind the slash


ALL = Filter()


def make_filter(
    folder: Path, under: str | Path | None = None, after: str | date | None = None, before: str | date | None = None
) -> Filter:
    """The filter that a user's words ask for.

    Args:
        folder: the indexed one.
        under: a folder in it: relative to it, or to the working folder, or absolute.
        after: a date, see `parse_date`.
        before: likewise.

    Raises:
        AuroraError: if one is wrong.
    """
    start = None if after is None else parse_date(after, "after")
    end = None if before is None else parse_date(before, "before")
    if start and end and start >= end:
        raise AuroraError(f"after {after} does not lie before {before}; exchange them")
    return Filter("" if under is None else _below(folder, under), start, end)


def parse_date(text: str | date, name: str = "the date") -> datetime:
    """The beginning of a year, month, day or minute: ``2024``, ``2024-05``, ``2024-05-31`` or ``2024-05-31T14:30``; a
    date of Python as it is, in local time.

    Args:
        name: what messages call it.

    Raises:
        AuroraError: if it is none.
    """
    if isinstance(text, datetime):
        return text if text.tzinfo is None else text.astimezone().replace(tzinfo=None)
    match = _DATE.fullmatch(str(text).strip())
    try:
        if match:
            year, month, day, hour, minute, second = (int(part) if part else None for part in match.groups())
            return datetime(year or 0, month or 1, day or 1, hour or 0, minute or 0, second or 0)
    except ValueError:  # no such day
        pass
    raise AuroraError(
        f"{name} {short(text)} is no date; give a year, month or day, such as 2024, 2024-05 or 2024-05-31"
    )


def _below(folder: Path, under: str | Path) -> str:
    """Relative to ``folder``, with forward slashes; empty for the folder itself."""
    top = folder.resolve()
    given = os.path.normpath(os.fspath(under))
    for place in (folder / given, Path(given)):
        # as it is named, since the paths of an index go through links
        for inside, of in ((os.path.abspath(place), os.path.abspath(folder)), (place.resolve(), top)):
            relative = os.path.relpath(inside, of).replace(os.sep, "/")
            if place.is_dir() and relative != ".." and not relative.startswith("../"):
                return "" if relative == "." else relative
    raise AuroraError(f"{os.fspath(under)} is no folder in {folder.name}; name one as it is called there")
