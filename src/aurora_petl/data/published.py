"""What the readers of published benchmarks share: finding their tables and media under one folder, reading rows, and
collecting what is wrong with them.

A user's folder need not be laid out in one way. Tables and media are found by name wherever they lie under the root,
by one listing; ``files`` of a recipe names what is called otherwise.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AuroraError, one_line, short
from ..files import parse_json, read_text, walk
from .kinds import ANIMATION_SUFFIXES, CLIP_SUFFIXES, FRAME_SUFFIXES, PICTURE_SUFFIXES
from .places import Folder
from .protocol import caption_text, composed
from .rows import ImageTextDataset, Item, Question, QuestionDataset, brief, listed, refuse
from .tables import csv_rows, json_lines

_MEND = "it may be cut off, download it again"
Layout = Mapping[str, Sequence[str]]  # key of `files` -> names that the table may have; a key ending in ? is optional


@dataclass(frozen=True)
class Table:
    """A published file of rows."""

    path: Path
    name: str  # relative to the benchmark's folder

    @cached_property
    def _text(self) -> str:
        text = read_text(self.path)
        if not text.strip():
            raise AuroraError(f"{self.path} is empty; download it again")
        return text

    @cached_property
    def json(self) -> Any:
        """The file's JSON, read once.

        Raises:
            AuroraError: if it is missing, not whole, not JSON, or not UTF-8.
        """
        try:
            return parse_json(self._text, str(self.path))
        except AuroraError as error:
            why = error.__cause__
            if not isinstance(why, json.JSONDecodeError):
                raise
            raise AuroraError(f"{self.path}, line {why.lineno}: not JSON ({why.msg}); {_MEND}") from error

    def rows(self, key: str | None = None, columns: Sequence[str] = ()) -> list[tuple[int, Any]]:
        """The rows of JSON (a list, or the list under ``key``), numbered from 1, or those of JSONL or of CSV (a mapping
        each), with their lines.

        Args:
            columns: those that a CSV must have.

        Raises:
            AuroraError: if the file holds something else.
        """
        problems: list[str] = []
        if self.path.suffix == ".csv":
            rows: list[tuple[int, Any]] = list(csv_rows(self._text, str(self.path), columns, problems))
        elif self.path.suffix == ".jsonl":
            rows = list(json_lines(self._text, str(self.path), _MEND, problems))
        else:
            value = self.json
            if key is not None and isinstance(value, dict):
                value = value.get(key)
            if not isinstance(value, list):
                wanted = f'a list under "{key}"' if key else "a list of rows"
                raise AuroraError(f"{self.path} does not hold {wanted}; is it the published file?")
            rows = list(enumerate(value, 1))
        refuse(problems)
        return rows


@dataclass
class Published:
    """A benchmark's folder: its tables, where its media lie, and what is wrong with either.

    Args:
        name: of the benchmark.
        root: its folder.
        files: what the user calls otherwise: tables by key, and the media's folder or folders as ``images`` or
            ``videos``, each relative to ``root`` or absolute; a table of None is left out, and its split with it.
        broken: ``stop``, or ``skip`` rows whose media are missing or, later, do not decode.
        clips: the media are clips: video files, animations, or folders of extracted frames.

    Raises:
        AuroraError: if there is no such folder.
    """

    name: str
    root: Path
    files: Mapping[str, Any] = field(default_factory=dict)
    broken: str = "stop"
    clips: bool = False
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise AuroraError(f"{self.name}: there is no folder {self.root}; give the benchmark's folder with --root")
        self.root = self.root.resolve()
        self.media = "videos" if self.clips else "images"
        self._held = list(walk(self.root, hidden=False))
        self._media: dict[str, list[str]] | None = None
        self._located: dict[str, str | None] = {}
        self._unlocated: Counter[str] = Counter()

    # Tables

    def tables(self, *layouts: Layout) -> tuple[int, dict[str, Table]]:
        """Which of the ``layouts`` the folder has, and its tables by key.

        Raises:
            AuroraError: if it has none whole; the message says what was looked for and what was found.
        """
        known = {key.rstrip("?") for layout in layouts for key in layout} | {self.media}
        if wrong := sorted(set(self.files) - known):
            raise AuroraError(f"{self.name}: files has no key {wrong[0]}; its keys are {', '.join(sorted(known))}")
        wanted = set(self.files) - {self.media}
        report = []
        for number, layout in enumerate(layouts):
            if wanted - {key.rstrip("?") for key in layout}:
                continue
            found: dict[str, Table] = {}
            missing = []
            for key, names in layout.items():
                plain = key.rstrip("?")
                if plain in self.files and self.files[plain] is None:
                    continue
                if table := self._table(plain, names):
                    found[plain] = table
                elif plain == key:
                    missing.append(f"{' or '.join(names)} (files.{plain})")
            if not missing and found:
                return number, found
            have = f", has {', '.join(table.name for table in found.values())}" if found else ""
            report.append(f"lacks {', '.join(missing) or 'all tables'}{have}")
        media = len(self._index())
        raise AuroraError(
            f"{self.name}: {self.root} is not whole: it {'; or it '.join(report)}. It holds {len(self._held):,} files, "
            f"{media:,} of them {self.media}. Put the files anywhere under it, or name what is called otherwise, as in "
            "files.train=my.json"
        )

    def _table(self, key: str, names: Sequence[str]) -> Table | None:
        if key in self.files:
            path = self.root / str(self.files[key])
            if not path.is_file():
                raise AuroraError(f"{self.name}: there is no file {path}, which files.{key} names")
            return Table(path, str(self.files[key]))
        for name in names:
            places = [place for place in self._held if f"/{place}".endswith(f"/{name}")]
            nearest = [p for p in places if p.count("/") == min(place.count("/") for place in places)]
            if len(nearest) > 1:
                raise AuroraError(
                    f"{self.name}: {name} lies in several places ({listed(nearest)}); name one, files.{key}="
                )
            if nearest:
                return Table(self.root / nearest[0], nearest[0])
        return None

    def problem(self, table: Table, row: int, what: str) -> None:
        """Note what is wrong with a row, counted from 1."""
        self.problems.append(f"{table.name}, {'row' if table.path.suffix == '.json' else 'line'} {row}: {what}")

    def objects(
        self, table: Table, key: str | None = None, columns: Sequence[str] = ()
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of a table that are objects, with their numbers or lines; others are noted. See `Table.rows`."""
        for number, row in table.rows(key, columns):
            if isinstance(row, dict):
                yield number, row
            else:
                self.problem(table, number, f"a {type(row).__name__}, not an object")

    def text(self, table: Table, number: int, row: Mapping[str, Any], *keys: str) -> str | None:
        """The first of these fields that a row has; None, and noted, if it is not text."""
        key = next((key for key in keys if key in row), None)
        if key is None:
            self.problem(table, number, f'no "{keys[0]}"')
        elif not isinstance(value := row[key], str) or not value.strip():
            self.problem(table, number, f'"{key}" is {short(value)}, not text')
        else:
            return value
        return None

    def texts(
        self, table: Table, number: int, row: Mapping[str, Any], *keys: str, blanks: bool = False
    ) -> list[str] | None:
        """The same for a field that may hold several texts; with ``blanks`` some of them, not all, may be empty."""
        key = next((key for key in keys if key in row), None)
        if key is None or not isinstance(row[key], list):
            single = self.text(table, number, row, *keys)
            return None if single is None else [single]
        values = row[key]
        if not values:
            self.problem(table, number, f'"{key}" is empty')
        wrong = [value for value in values if not isinstance(value, str) or not value.strip()]
        if blanks and len(wrong) < len(values):
            wrong = [value for value in wrong if not isinstance(value, str)]
        if wrong:
            self.problem(table, number, f'"{key}" has {short(wrong[0])}, not text')
        return None if wrong or not values else values

    # Media

    def locate(self, name: str) -> str | None:
        """Where the picture or clip of a published name lies, relative to the root; None, and counted, if nowhere."""
        if name not in self._located:
            self._located[name] = self._find(name)
        if self._located[name] is None:
            self._unlocated[name] += 1
        return self._located[name]

    def _find(self, name: str) -> str | None:
        places = self._index().get(self._key(name), [])
        if len(places) > 1:  # links to one and the same
            places = list({os.path.realpath(self.root / place): place for place in reversed(places)}.values())[::-1]
        if len(places) > 1 and "/" in name:  # several of one name: the published path decides
            places = [place for place in places if f"/{place}".endswith(f"/{name}")] or places
        if len(places) > 1:  # a video and its extracted frames: the video
            places = [place for place in places if place.lower().endswith(CLIP_SUFFIXES)] or places
        if len(places) > 1:
            self.problems.append(
                f"{brief(name)} lies in several places ({listed([brief(place) for place in places])}); name the folder "
                f"to use, files.{self.media}="
            )
        return places[0] if places else None

    def _key(self, name: str) -> str:
        name = composed(name.rsplit("/", 1)[-1])
        while self.clips and name.lower().endswith(CLIP_SUFFIXES + ANIMATION_SUFFIXES):
            name = name.rsplit(".", 1)[0]
        return name

    def _index(self) -> dict[str, list[str]]:
        """Places of media by name; of clips by name without suffix."""
        if self._media is None:
            places = self._held
            if self.media in self.files:
                named = self.files[self.media]
                places = []
                for folder in named if isinstance(named, list) else [named]:
                    path = self.root / str(folder)
                    if not path.is_dir():
                        raise AuroraError(f"{self.name}: there is no folder {path}, which files.{self.media} names")
                    inside = path.is_relative_to(self.root)
                    start = path.relative_to(self.root).as_posix() if inside else path.as_posix()
                    places += [place if start == "." else f"{start}/{place}" for place in walk(path, hidden=False)]
            self._media = defaultdict(list)
            if self.clips:
                files = [place for place in places if place.lower().endswith(CLIP_SUFFIXES + ANIMATION_SUFFIXES)]
                pictures = (place for place in places if place.lower().endswith(FRAME_SUFFIXES) and "/" in place)
                files += dict.fromkeys(place.rsplit("/", 1)[0] for place in pictures)
            else:
                files = [place for place in places if place.lower().endswith(PICTURE_SUFFIXES)]
            for place in files:
                self._media[self._key(place)].append(place)
            self._media = dict(self._media)
        return self._media

    # Datasets

    def image_text(self, items: Sequence[Item], tables: Mapping[str, Table]) -> ImageTextDataset:
        """The dataset of these rows.

        Raises:
            AuroraError: with what is wrong with rows or media, if anything is.
        """
        self._settle(len(items))
        return ImageTextDataset(self.name, list(items), Folder(self.root), _names(tables), self.clips, self.broken)

    def questions(
        self, questions: Sequence[Question], tables: Mapping[str, Table], candidates: Sequence[str]
    ) -> QuestionDataset:
        """The dataset of these questions.

        Raises:
            AuroraError: with what is wrong with rows or media, if anything is.
        """
        self._settle(len(questions))
        made = QuestionDataset(self.name, list(questions), Folder(self.root), _names(tables), self.clips, self.broken)
        made.candidates = tuple(candidates)
        return made

    def _settle(self, rows: int) -> None:
        missing = len(self._unlocated)
        said = (
            f"{self.name}: {missing:,} of {len(self._located):,} {self.media} are missing under {self.root}: "
            + listed([brief(name) for name in self._unlocated])
        )
        if missing and self.broken == "skip" and rows and not self.problems:
            print(one_line(f"{said}; left out, and with them {sum(self._unlocated.values()):,} rows"))
            return
        if missing:
            self.problems.append(
                f"{said}. The folder holds {len(self._index()):,} {self.media}; add what is missing, name another "
                f"folder with files.{self.media}=FOLDER, or leave these rows out with broken=skip"
            )
        if self.problems:
            raise AuroraError(listed(self.problems))
        if not rows:
            raise AuroraError(f"{self.name}: the tables under {self.root} hold no rows")


@dataclass
class Captions:
    """Captions gathered by picture or clip, over rows and tables."""

    source: Published
    words: int  # that a caption keeps
    items: dict[str, Item] = field(default_factory=dict)

    def add(self, table: Table, row: int, media: str, captions: Sequence[str], split: str) -> None:
        """Add the captions of a row; a picture in two splits is noted."""
        place = self.source.locate(media)
        if place is None:
            return
        texts = tuple(caption_text(caption, self.words) for caption in captions)
        known = self.items.get(place)
        if known is None:
            self.items[place] = Item(place, texts, media, split, row, table.name)
        elif known.split != split:
            self.source.problem(
                table, row, f"{brief(media)} is in split {split} here and in {known.split} in {known.source}"
            )
        else:
            self.items[place] = replace(known, captions=known.captions + texts)


def _names(tables: Mapping[str, Table]) -> str:
    return ", ".join(table.name for table in tables.values())
