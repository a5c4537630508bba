"""Where a dataset's files are read from: a folder, or a tar of one, which is read in place."""

from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import BinaryIO, Protocol, cast

from ..errors import AuroraError, first_line
from ..files import LFS_POINTER, read_bytes, walk
from .video import frame_names, frames_in


class Files(Protocol):
    """Files by their names, which are relative and have forward slashes."""

    name: str

    def names(self) -> set[str]: ...

    def read(self, name: str, most: int = -1) -> bytes:
        """A file's bytes, at most so many from the first on; -1 gives all.

        Raises OSError, with words for users, if there is no such file or it cannot be read.
        """
        ...

    def frames(self, name: str) -> list[str]:
        """The pictures in the folder ``name``, which is a clip in extracted frames; none if it is a file."""
        ...

    def why(self, name: str) -> str | None:
        """Why ``name``, which is not among the names, cannot be read although something is there."""
        ...


class Folder:
    """Files under a folder; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def names(self) -> set[str]:
        return set(walk(self.path))

    def read(self, name: str, most: int = -1) -> bytes:
        return read_bytes(self.path / name, most)

    def frames(self, name: str) -> list[str]:
        try:
            return [f"{name}/{frame}" for frame in frames_in(self.path / name)]
        except (OSError, ValueError):
            return []

    def why(self, name: str) -> str | None:
        path = self.path / name
        try:
            read_bytes(path)
        except FileNotFoundError:
            return "it is a link to nothing" if os.path.islink(path) else None
        except OSError as error:
            return error.strerror or first_line(error)
        return None


class Tar:
    """Members of a tar. Links to members are followed; of two members of one name the last counts, as where a tar is
    unpacked.

    Raises:
        AuroraError: if it is no plain tar, or not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._places: dict[str, tuple[int, int]] = {}
        self._odd: dict[str, str] = {}
        self._list()

    def _list(self) -> None:
        links: dict[str, str] = {}
        for member, _ in members(self.path):
            name = _name(member.name)
            for known in (self._places, links, self._odd):
                known.pop(name, None)  # type: ignore[attr-defined]
            if member.issparse():
                self._odd[name] = "it is stored sparsely; pack the folder again without that (tar -S)"
            elif member.isfile():
                self._places[name] = member.offset_data, member.size
            elif member.islnk():
                links[name] = _name(member.linkname)
            elif member.issym():
                links[name] = _name(str(PurePosixPath(name).parent / member.linkname))
        for name in links:
            target, seen = name, set()
            while target in links and target not in seen:
                seen.add(target)
                target = links[target]
            if target in self._places:
                self._places[name] = self._places[target]
            else:
                self._odd[name] = "it is a link to what is no file of the tar; pack the folder with tar -chf"

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str, most: int = -1) -> bytes:
        if name not in self._places:
            raise FileNotFoundError(name)
        offset, size = self._places[name]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size if most < 0 else min(size, most))

    def frames(self, name: str) -> list[str]:
        return self._frames.get(name, [])

    @cached_property
    def _frames(self) -> dict[str, list[str]]:
        inside = defaultdict(list)
        for place in self._places:
            folder, _, file = place.rpartition("/")
            inside[folder].append(file)
        return {folder: [f"{folder}/{file}" for file in frame_names(files)] for folder, files in inside.items()}

    def why(self, name: str) -> str | None:
        above = [name, *(str(parent) for parent in PurePosixPath(name).parents)]
        return next((self._odd[place] for place in above if place in self._odd), None)


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """The members of a plain tar one by one, none of which is kept, and the open file that they lie in.

    Raises:
        AuroraError: if it is no plain tar, or not whole.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            file = cast(BinaryIO, archive.fileobj)
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                yield member, file
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken head for the end
                raise tarfile.ReadError(f"a member's head is broken at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and not path.is_file():
            raise AuroraError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
        head = read_bytes(path, len(LFS_POINTER))
        if head == LFS_POINTER:
            raise AuroraError(f"{path} is a pointer of git-lfs; fetch the tar with git lfs pull") from error
        what = "empty" if not head else f"not a plain tar ({first_line(error)})"
        raise AuroraError(f"{path} is {what}; pack the folder with tar -cf") from error
    except Exception as error:  # numbers and texts in heads may be anything
        raise AuroraError(f"{path} is broken ({first_line(error)}); pack the folder again, with tar -cf") from error


def _name(name: str) -> str:
    """A member's name as it is unpacked: below the folder."""
    return normpath(name.lstrip("/") or ".")
