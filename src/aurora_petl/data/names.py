"""Which file of a folder or tar a row means: by its name, whichever way accents are written, or by the end of it."""

from __future__ import annotations

import difflib
import os
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

from .kinds import CLIP_SUFFIXES, PICTURE_SUFFIXES
from .places import Files
from .protocol import composed

_MEDIA = frozenset((*PICTURE_SUFFIXES, *CLIP_SUFFIXES))
_NEAR = 2000  # names that a missing one is compared with: comparing is slow


class Names(Protocol):
    """Names of files, relative and with forward slashes."""

    def __iter__(self) -> Iterator[str]:
        """Those that are known, at least all that rows may be in, in their order."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether a name is among these."""
        ...

    def find(self, name: str, folders: bool = False) -> str | None:
        """The name on disk of what a row names; with ``folders`` it may be a folder, which holds a clip's frames."""
        ...

    def bare(self, name: str) -> str | None:
        """The picture's or clip's name on disk that is ``name`` and a suffix; None if ``name`` has one already."""
        ...

    def ending(self, name: str) -> list[str]:
        """The known names that end in ``name``, or in ``name`` and a suffix as `bare` has it, in whichever folders."""
        ...

    def near(self, name: str) -> str | None:
        """A name on disk that may be meant by one that is not there."""
        ...


class AllNames:
    """The names of all files at a place, listed once."""

    def __init__(self, files: Files) -> None:
        self.held = files.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sorted)

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def find(self, name: str, folders: bool = False) -> str | None:
        """Systems differ in how they write a letter with its accent."""
        for places in (self.held, self.folders) if folders else (self.held,):
            if name in places:
                return name
            found = self._composed.get(composed(name))
            if found in places:
                return found
        return None

    def bare(self, name: str) -> str | None:
        return next((held for held in self._by_stem.get(name.rpartition("/")[2], ()) if _stem(held) == name), None)

    def ending(self, name: str) -> list[str]:
        last, end = name.rpartition("/")[2], f"/{name}"
        whole = [held for held in self._by_last.get(last, ()) if f"/{held}".endswith(end)]
        return whole or [held for held in self._by_stem.get(last, ()) if f"/{_stem(held)}".endswith(end)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Pictures and clips by their last parts without their suffixes."""
        by_stem: dict[str, list[str]] = {}
        for name in self._sorted:
            if stem := _stem(name):
                by_stem.setdefault(stem.rpartition("/")[2], []).append(name)
        return by_stem

    @cached_property
    def folders(self) -> set[str]:
        """All that hold files, at any depth."""
        found: set[str] = set()
        for name in self.held:
            while (name := name.rpartition("/")[0]) and name not in found:
                found.add(name)
        return found

    @cached_property
    def _composed(self) -> dict[str, str]:
        return {composed(name): name for name in (*self.folders, *self.held)}

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        by_last: dict[str, list[str]] = {}
        for name in self._sorted:
            by_last.setdefault(name.rpartition("/")[2], []).append(name)
        return by_last

    def near(self, name: str) -> str | None:
        if len(name) > 255:
            return None
        whole, last = self._alike
        if near := whole.get(name.casefold()) or last.get(name.rpartition("/")[2].casefold()):
            return near
        middle = bisect_left(self._sorted, name)
        around = self._sorted[max(0, middle - _NEAR // 2) : middle + _NEAR // 2]
        return next(iter(difflib.get_close_matches(name, around, 1, 0.8)), None)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.held)

    @cached_property
    def _alike(self) -> tuple[dict[str, str], dict[str, str]]:
        """Names by what they are but for case, and by their last parts."""
        return (
            {name.casefold(): name for name in self._sorted},
            {name.rpartition("/")[2].casefold(): name for name in self._sorted},
        )


def _stem(name: str) -> str:
    """The name of a picture or clip without its suffix; "" of other files."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _MEDIA else ""


class NamesAsAsked:
    """Names under a folder of which only those folders are listed that rows name: it may be the root of a disk.

    Args:
        known: the names to tell of without being asked.
    """

    def __init__(self, folder: Path, known: tuple[str, ...] = ()) -> None:
        self.folder, self.known = folder, known
        self._inside: dict[str, tuple[dict[str, str], dict[str, str]]] = {}  # files and folders of a folder
        self._bare: dict[str, dict[str, str]] = {}  # pictures and clips of a folder by their names without suffixes

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __contains__(self, name: object) -> bool:
        return name in self.known

    def find(self, name: str, folders: bool = False) -> str | None:
        above, _, last = name.rpartition("/")
        parent = self._folder(above)
        if parent is None:
            return None
        for places in self._listed(parent)[: 1 + folders]:
            found = last if last in places else places.get(composed(last))
            if found is not None:
                return f"{parent}/{found}" if parent else found
        return None

    def bare(self, name: str) -> str | None:
        above, _, last = name.rpartition("/")
        parent = self._folder(above)
        if parent is None:
            return None
        if above not in self._bare:
            held = sorted(set(self._listed(parent)[0].values()), reverse=True)
            self._bare[above] = {stem: name for name in held if (stem := _stem(name))}
        found = self._bare[above].get(last)
        return found if found is None or not parent else f"{parent}/{found}"

    def ending(self, name: str) -> list[str]:
        return []

    def near(self, name: str) -> str | None:
        above, _, last = name.rpartition("/")
        parent = self._folder(above)
        if parent is None or len(last) > 255:
            return None
        held = sorted(set(self._listed(parent)[0].values()))[:_NEAR]
        same = [other for other in held if other.casefold() == last.casefold()]
        found = next(iter(same or difflib.get_close_matches(last, held, 1, 0.8)), None)
        return found if found is None or not parent else f"{parent}/{found}"

    def _folder(self, name: str) -> str | None:
        """A folder's name on disk."""
        if name in self._inside or not name:
            return name
        above, _, last = name.rpartition("/")
        parent = self._folder(above)
        if parent is None:
            return None
        folders = self._listed(parent)[1]
        found = last if last in folders else folders.get(composed(last))
        return found if found is None or not parent else f"{parent}/{found}"

    def _listed(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """Names of the files and of the folders in a folder, under themselves and as they are composed."""
        if folder not in self._inside:
            files: dict[str, str] = {}
            folders: dict[str, str] = {}
            try:
                with os.scandir(self.folder / folder) as entries:
                    for entry in entries:
                        try:
                            held = folders if entry.is_dir() else files if entry.is_file() else {}
                        except OSError:  # a link to itself
                            continue
                        held[entry.name] = held[composed(entry.name)] = entry.name
            except (OSError, ValueError):  # gone, no right to list it, or no name for a folder
                pass
            self._inside[folder] = files, folders
        return self._inside[folder]
