"""What a user named as data: a folder, a tar of one, or one table; its files, and how they are said to be read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AuroraError, first_line, short
from ..files import is_hidden, parse_text
from .kinds import is_media
from .names import AllNames, Names, NamesAsAsked
from .places import Files, Folder, Tar
from .reading import RowReader


@dataclass
class Source:
    """A place of data.

    Args:
        path: a folder, or a plain ``.tar`` of one.
        root: the folder that names of pictures are relative to, and absolute ones lie in, if it is another.
        options: ``files`` of a recipe; ``docs/data.md`` has the keys.
        broken: what `Dataset.check` does with what does not decode.
        absent: takes the names of media that are missing, whose rows are then left out; None: they are refused.
        named: the files under ``path`` that were named in its place; others are then not listed.
        called: what messages call it, if not by the path's last part.

    Raises:
        AuroraError: if ``path`` is no plain tar, or ``root`` no folder.
    """

    path: Path
    root: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    broken: str = "stop"
    absent: list[str] | None = None
    named: tuple[str, ...] = ()
    called: str = ""

    def __post_init__(self) -> None:
        self.files: Files = Tar(self.path) if self.path.is_file() else Folder(self.path)
        if self.root is not None and not self.root.is_dir():
            raise AuroraError(f"there is no folder {self.root}, which --root names")

    @cached_property
    def names(self) -> Names:
        """The names of the place's files; listed when they are first asked for."""
        return NamesAsAsked(self.path, self.named) if self.named else AllNames(self.files)

    @cached_property
    def visible(self) -> list[str]:
        """The same in their order, without hidden files and those of hidden folders."""
        return [name for name in self.names if not any(map(is_hidden, name.split("/")))]

    @cached_property
    def described(self) -> set[str]:
        """The names of pictures and clips without their suffixes: what else is called so tells of one of them alone."""
        return {os.path.splitext(name)[0] for name in self.visible if is_media(name)}

    @property
    def title(self) -> str:
        """What the data are called."""
        return PurePosixPath(self.named[0]).stem if len(self.named) == 1 else self.path.stem

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folder that pictures lie in, under each of its names."""
        folder = self.root or self.path
        return tuple(dict.fromkeys((folder.absolute(), folder.resolve())))

    def text(self, name: str) -> str:
        """A file's text.

        Raises:
            AuroraError: if it cannot be read or is not UTF-8.
        """
        return parse_text(self.data(name), self.where(name))

    def data(self, name: str, most: int = -1) -> bytes:
        """A file's bytes, from the first on; with ``most`` at -1 all of them.

        Raises:
            AuroraError: if it cannot be read.
        """
        try:
            return self.files.read(name) if most < 0 else self.files.read(name, most)
        except OSError as error:
            raise AuroraError(f"{self.where(name)} cannot be read: {error.strerror or first_line(error)}") from error

    def where(self, name: str) -> str:
        """What messages call a file."""
        called = self.called or self.path.name
        return f"{called}/{name}" if called else name

    def reader(self, where: str, anywhere: bool = False) -> RowReader:
        """What reads rows whose pictures lie here, or under ``root``."""
        if self.root is None:
            files, names, holder = self.files, self.names, self.path
        else:
            files, names, holder, anywhere = Folder(self.root), NamesAsAsked(self.root), self.root, False
        return RowReader(where, holder, files, names, self.absent, anywhere, self.broken == "skip")

    def option(self, key: str, default: str = "") -> str:
        """An option that is one text.

        Raises:
            AuroraError: if it is something else.
        """
        value = self.options.get(key, default) or ""
        if not isinstance(value, str):
            raise AuroraError(f"files.{key} is {short(value)}; it must be text")
        return value

    def options_of(self, key: str) -> list[str]:
        """An option that is one text or several.

        Raises:
            AuroraError: if it is something else.
        """
        value = self.options.get(key) or []
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(text, str) for text in several):
            raise AuroraError(f"files.{key} is {short(value)}; it must be text or a list of texts")
        return several
