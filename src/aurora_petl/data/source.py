"""What a user named as data: a folder, a tar of one, or one table; its files, and how they are said to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AuroraError, first_line, short
from ..files import parse_text
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
        table: the one file under ``path`` that was named in its place; other files are then not listed.

    Raises:
        AuroraError: if ``path`` is no plain tar, or ``root`` no folder.
    """

    path: Path
    root: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    broken: str = "stop"
    absent: list[str] | None = None
    table: str = ""

    def __post_init__(self) -> None:
        self.files: Files = Tar(self.path) if self.path.is_file() else Folder(self.path)
        if self.root is not None and not self.root.is_dir():
            raise AuroraError(f"there is no folder {self.root}, which --root names")

    @cached_property
    def names(self) -> Names:
        """The names of the place's files; listed when they are first asked for."""
        return NamesAsAsked(self.path, (self.table,)) if self.table else AllNames(self.files)

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

    def data(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            AuroraError: if it cannot be read.
        """
        try:
            return self.files.read(name)
        except OSError as error:
            raise AuroraError(f"{self.where(name)} cannot be read: {error.strerror or first_line(error)}") from error

    def where(self, name: str) -> str:
        """What messages call a file."""
        return f"{self.path.name}/{name}"

    def reader(self, where: str, anywhere: bool = False) -> RowReader:
        """What reads rows whose pictures lie here, or under ``root``."""
        if self.root is None:
            return RowReader(where, self.path, self.files, self.names, self.absent, anywhere)
        return RowReader(where, self.root, Folder(self.root), NamesAsAsked(self.root), self.absent)

    def option(self, key: str, default: str = "") -> str:
        """An option that is one text.

        Raises:
            AuroraError: if it is something else.
        """
        value = self.options.get(key, default)
        if not isinstance(value, str):
            raise AuroraError(f"files.{key} is {short(value)}; it must be text")
        return value
