"""What a folder holds that can be indexed, and what it holds that cannot."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..data.kinds import FORMATS, HEIF_SUFFIXES, PICTURE_SUFFIXES, UNDECODED_SUFFIXES
from ..errors import AuroraError, install, one_line
from ..files import walk
from .captions import read_captions

SUFFIXES = frozenset(PICTURE_SUFFIXES) - frozenset(UNDECODED_SUFFIXES)
OTHERS = frozenset(  # look like pictures, too
    (
        *(*UNDECODED_SUFFIXES, ".jxl", ".psd", ".svg", ".xcf"),
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2"),  # of cameras
    )
)


@dataclass(frozen=True)
class Content:
    """What the folder holds."""

    files: dict[str, os.stat_result]  # of pictures, in the order of their names
    skipped: dict[str, str]
    others: dict[str, int]
    texts: list[str]
    absent: list[str]
    note: str


def look(folder: Path) -> Content:
    """What there is to index, before anything is loaded or written.

    Hidden files and folders are left out, linked ones are not.

    Raises:
        AuroraError: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise AuroraError(f"no folder {folder}; name the one that holds your pictures")
    check_name(folder)
    files: dict[str, os.stat_result] = {}
    skipped: dict[str, str] = {}
    others: Counter[str] = Counter()

    def problem(path: str, why: str) -> None:
        if _kind(path) in SUFFIXES or (folder / path).is_dir():
            skipped[one_line(path)] = f"{one_line(path)}: {why}"

    for path in walk(folder, hidden=False, problem=problem):
        if (kind := _kind(path)) in SUFFIXES:
            try:
                files[path] = (folder / path).stat()
            except OSError as error:  # gone since it was listed
                problem(path, error.strerror or str(error))
        elif kind in OTHERS:
            others[kind] += 1
    if not files:
        also = f"; {_counted(others)} are of kinds that are not read: {mend_of(others)}" if others else ""
        also += f"; {len(skipped)} cannot be read, such as {next(iter(skipped.values()))}" if skipped else ""
        kinds = ", ".join(suffixes[0] for suffixes in FORMATS.values())
        raise AuroraError(f"{folder} holds no pictures ({kinds}){also}")
    return Content(files, skipped, dict(others), *read_captions(folder))


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def mend_of(kinds: Collection[str]) -> str:
    """What to do about pictures of kinds that are not read, by their suffixes."""
    if set(kinds).isdisjoint(HEIF_SUFFIXES):
        return "save them as JPEG or PNG"
    return f"save them as JPEG or PNG, or, for those of phones, {install('heic')}"


def _counted(others: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))


def check_name(folder: Path) -> None:
    """AuroraError says so if the name of a folder is not UTF-8."""
    if not is_utf8(os.path.realpath(folder)):
        raise AuroraError(f"{folder}: the name is not UTF-8; rename the folder")


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
