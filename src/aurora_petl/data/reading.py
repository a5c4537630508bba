"""From the rows of any table to a dataset: every row is checked, its picture looked up, and what is wrong with it noted
by file and row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..errors import AuroraError
from .items import Item, Row
from .names import Names
from .places import Files
from .protocol import composed
from .rows import SHOWN, brief, listed, place, refuse

MOST_PROBLEMS = 100_000  # that are noted before reading stops: a wrong table of millions of rows has millions


class Raw(NamedTuple):
    """A row in the words of ``captions.jsonl``, before it is checked."""

    source: str  # the file it stands in, as messages call it
    line: int
    fields: dict[str, Any]  # image or clip, caption, split, id
    folder: str = ""  # that its picture's name is relative to, and if it is not there, to the whole


@dataclass
class RowReader:
    """What is common to the rows of one dataset.

    Args:
        where: what messages call the dataset's rows, such as ``mine/captions.jsonl``.
        holder: the folder or tar that pictures are said to be missing from.
        files, names: of the pictures and clips.
        absent: takes the media that are missing, which are a problem otherwise.
        skip: leave out the rows that something is wrong with, if any others are there.
        anywhere: a picture may lie in any folder, if its name is there once.
    """

    where: str
    holder: object
    files: Files
    names: Names
    absent: list[str] | None = None
    anywhere: bool = False
    skip: bool = False
    problems: list[str] = field(default_factory=list)
    clips: bool = False
    missing: int = 0  # rows whose picture or clip is not there

    def read(self, rows: Iterable[Raw], make: Callable[[dict[str, Any], int], Row]) -> Iterator[Row]:
        """The rows that are right and whose files are there; what is wrong with others is noted."""
        kinds: dict[str, Raw] = {}
        for raw in rows:
            kind = "clip" if "clip" in raw.fields else "image"
            kinds.setdefault(kind, raw)
            try:
                made = make(raw.fields, raw.line)
                found = self._find(raw, made.image, kind == "clip")
            except ValueError as error:
                self.problem(raw, str(error))
                continue
            if found is not None:
                yield self._placed(raw, made, found)
            elif self.absent is not None:
                self.absent.append(made.image)
            else:
                self._missing(raw, "clip" if kind == "clip" else "picture", made.image)
        self.clips = "clip" in kinds
        if len(kinds) > 1:
            other = list(kinds.values())[1]
            there = place(other.source or self.where, other.line)
            refuse([*self.problems, f"{there}: clips and pictures in one file; give each a folder of its own"])

    def captions(self, rows: Iterable[Raw], make: Callable[[dict[str, Any], int], Item]) -> list[Item]:
        """The same as one item a picture, with all of its captions."""
        items: dict[str, Item] = {}
        for item in self.read(rows, make):
            known = items.get(item.image)
            if known and (known.split, known.id) != (item.split, item.id):
                there = place(known.source or self.where, known.line)
                if known.source == item.source:
                    there = f"line {known.line}"
                self.problem(item, f"{brief(item.image)} stands in {there} with another split or id; keep one")
                continue
            items[item.image] = replace(known, captions=known.captions + item.captions) if known else item
        return list(items.values())

    def _placed(self, raw: Raw, made: Row, found: str) -> Row:
        source = "" if raw.source == self.where else raw.source
        if found == made.image and source == made.source:
            return made
        if isinstance(made, Item) and "id" not in raw.fields:
            return replace(made, image=found, source=source, id=composed(found))
        return replace(made, image=found, source=source)

    def _find(self, raw: Raw, name: str, clip: bool) -> str | None:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        slashed = name if ".." in parts else "/".join(parts)  # Windows' separators
        for spelled in dict.fromkeys((name, slashed)):
            for path in (f"{raw.folder}/{spelled}", spelled) if raw.folder else (spelled,):
                if found := self.names.find(path, clip) or self.names.bare(path):
                    return found
        if not self.anywhere:
            return None
        several = self.names.ending(slashed)
        if len(several) > 1:
            raise ValueError(
                f"{brief(name)} lies in several folders ({brief(several[0])}, {brief(several[1])}); name the right "
                "one with --root"
            )
        return several[0] if several else None

    def _missing(self, raw: Raw, what: str, name: str) -> None:
        self.missing += 1
        said = f"{what} {brief(name)} is missing from {self.holder}"
        if why := self.files.why(name):
            said += f": {why}"
        elif len(self.problems) < SHOWN and (near := self.names.near(name)):
            said += f"; did you mean {brief(near)}?"
        self.problem(raw, said)

    def problem(self, row: Raw | Item | Any, what: str) -> None:
        """Note what is wrong with a row.

        Raises:
            AuroraError: with the first few problems, if there are very many.
        """
        self.problems.append(f"{place(row.source or self.where, row.line)}: {what}")
        if len(self.problems) >= MOST_PROBLEMS and not self.skip:
            refuse(self.problems)

    def settle(self, rows: Sequence[Row]) -> str:
        """Make sure that nothing is wrong, and that there are rows; says which rows were left out.

        Raises:
            AuroraError: otherwise.
        """
        if not self.skip or not rows:
            refuse(self.problems)
        if not rows and not self.absent:
            raise AuroraError(f"{self.where} holds no rows")
        return f"{len(self.problems):,} rows left out: {listed(self.problems)}" if self.problems else ""
