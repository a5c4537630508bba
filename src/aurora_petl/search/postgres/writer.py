"""A library in PostgreSQL as it is written: batches whole or not at all, and no work twice.

Before a process reads a picture it claims its path, before it encodes one its content, both by advisory locks of its
session. The server lets go of them when the session ends, so that others go on with what a process that was killed had
claimed. What a process has encoded stands in one transaction with the pictures that show it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import stat_result
from pathlib import Path

from psycopg import sql
from torch import Tensor

from ..encoder import Encoder
from ..manifest import Picture
from ..reading import BATCH, TEXT_BATCH, ahead, encode_pictures, read_picture
from ..shards import digest
from .address import Address
from .database import Database, halfvec

PAUSE = 0.2  # seconds before what others have claimed is looked at again
LONGEST = 2500  # bytes of a path that PostgreSQL's indexes take


class Held:
    """The contents that the library holds, as the threads ask that read pictures."""

    def __init__(self, address: Address) -> None:
        self._database = Database(address)

    def __contains__(self, content: object) -> bool:
        return bool(self._database.one("SELECT true FROM features WHERE sha256 = %s", [bytes.fromhex(str(content))]))

    def close(self) -> None:
        self._database.close()


@dataclass
class _Group:
    """Pictures that are written together."""

    pictures: list[Picture] = field(default_factory=list)
    pixels: dict[str, Tensor] = field(default_factory=dict)  # by content


class Writer:
    """One process's share in filling a library.

    Args:
        told: is called with the number of pictures that are done, by whomever.
    """

    def __init__(
        self, database: Database, folder: Path, encoders: dict[str, Encoder], told: Callable[[int], object]
    ) -> None:
        self.database, self.folder, self.encoders, self.told = database, folder, encoders, told
        self.encoded = 0
        self.skipped: dict[str, str] = {}  # path -> why
        self._columns = sql.SQL(", ").join(map(sql.Identifier, encoders))

    def add_pictures(self, files: dict[str, stat_result]) -> None:
        """Encode what the library lacks of ``files``; returns when all are in it, whoever encoded them."""
        long = [path for path in files if len(path.encode(errors="replace")) > LONGEST]
        self.skipped |= {path: f"{path}: the path is longer than {LONGEST:,} bytes; shorten it" for path in long}
        held = Held(self.database.address)
        try:
            with ThreadPoolExecutor() as pool:
                paths = [path for path in files if path not in self.skipped]
                start = random.SystemRandom().randrange(len(paths) or 1)  # elsewhere than other processes
                paths = paths[start:] + paths[:start]
                while paths:
                    busy = self._pass(paths, files, held, pool)
                    if len(busy) == len(paths):
                        time.sleep(PAUSE)
                    paths = busy
        finally:
            held.close()

    def _pass(self, paths: list[str], files: dict[str, stat_result], held: Held, pool: ThreadPoolExecutor) -> list[str]:
        """Work on what nobody else works on; the rest is returned."""
        busy: list[str] = []
        group = _Group()
        transform = next(iter(self.encoders.values())).transform

        def read(path: str) -> tuple[str, tuple[Picture, Tensor | None] | str]:
            return path, read_picture(self.folder, path, held, transform)

        for path, outcome in ahead(pool, read, self._claimed(paths, files, busy), 2 * BATCH):
            if isinstance(outcome, str):
                self.skipped[path] = outcome
                self.database.rows("DELETE FROM pictures WHERE path = %s", [_stored(path)])
                self.database.release([path])
                self.told(1)
                continue
            picture, pixels = outcome
            group.pictures.append(picture)
            if pixels is not None:
                group.pixels[picture.sha256] = pixels
            if len(group.pixels) == BATCH or len(group.pictures) == 2 * BATCH:
                busy += self._save(group)
                group = _Group()
        return busy + self._save(group)

    def _claimed(self, paths: list[str], files: dict[str, stat_result], busy: list[str]) -> Iterator[str]:
        """Those of ``paths`` that are to be read here, claimed; what others have claimed goes to ``busy``."""
        for first in range(0, len(paths), BATCH):
            part = paths[first : first + BATCH]
            mine = self.database.claim(part)
            done = self._done([path for path in part if path in mine], files)
            self.database.release(done)
            self.told(len(done))
            busy += [path for path in part if path not in mine]
            yield from (path for path in part if path in mine and path not in done)

    def _done(self, paths: list[str], files: dict[str, stat_result]) -> set[str]:
        """Those that the library holds as they are now."""
        stored = {_stored(path): path for path in paths}
        rows = self.database.rows("SELECT path, size, mtime_ns FROM pictures WHERE path = ANY(%s)", [list(stored)])
        done = set()
        for name, size, mtime_ns in rows:
            status = files[stored[name]]
            if (size, mtime_ns) == (status.st_size, status.st_mtime_ns):
                done.add(stored[name])
        return done

    def _save(self, group: _Group) -> list[str]:
        """Encode and write a group, then let go of its claims; the paths whose content another process encodes just
        now, or took away, are returned."""
        contents = [f"content {content}" for content in group.pixels]  # no path of a picture, having no suffix
        mine = {name.removeprefix("content ") for name in self.database.claim(contents)}
        there = self._present(list(mine))  # since it was read
        new = [content for content in group.pixels if content in mine - there]
        rows: list[list[object]] = []
        if new:
            features = encode_pictures(self.encoders, [group.pixels[content] for content in new])
            vectors = [features[view].flatten(1).half().tolist() for view in self.encoders]
            rows = [[bytes.fromhex(new[n]), *(halfvec(part[n]) for part in vectors)] for n in range(len(new))]
        with self.database.transaction():
            if rows:
                self.encoded += self.database.write(
                    sql.SQL("INSERT INTO features (sha256, {}) VALUES ({}) ON CONFLICT DO NOTHING").format(
                        self._columns, sql.SQL(", ").join([sql.Placeholder()] * len(rows[0]))
                    ),
                    rows,
                )
            there = self._present([picture.sha256 for picture in group.pictures], keep=True)
            written = [picture for picture in group.pictures if picture.sha256 in there]
            self.database.write(_UPSERT, [_row(picture) for picture in written])
        self.database.release([*(f"content {content}" for content in mine), *(p.path for p in group.pictures)])
        self.told(len(written))
        return [picture.path for picture in group.pictures if picture.sha256 not in there]

    def _present(self, contents: list[str], keep: bool = False) -> set[str]:
        """The contents that the library holds; with ``keep`` nobody removes them before the transaction ends."""
        asked = "SELECT sha256 FROM features WHERE sha256 = ANY(%s) ORDER BY sha256"
        rows = self.database.rows(
            f"{asked} FOR KEY SHARE" if keep else asked, [[bytes.fromhex(content) for content in contents]]
        )
        return {bytes(content).hex() for (content,) in rows}

    def add_captions(self, texts: Sequence[str]) -> None:
        """Encode the captions that the library lacks; returns when all are in it."""
        waiting = list(texts)
        while waiting:
            busy: list[str] = []
            for first in range(0, len(waiting), TEXT_BATCH):
                part = {digest(text.encode()): text for text in waiting[first : first + TEXT_BATCH]}
                names = {f"caption {content}": content for content in part}
                mine = self.database.claim(names)
                rows = self.database.rows(
                    "SELECT sha256 FROM captions WHERE sha256 = ANY(%s)", [[bytes.fromhex(one) for one in part]]
                )
                there = {bytes(content).hex() for (content,) in rows}
                new = [content for name, content in names.items() if name in mine and content not in there]
                if new:
                    self._write_captions(new, [part[content] for content in new])
                self.database.release(mine)
                busy += [part[c] for name, c in names.items() if name not in mine and c not in there]
            if len(busy) == len(waiting):
                time.sleep(PAUSE)
            waiting = busy

    def _write_captions(self, contents: list[str], texts: list[str]) -> None:
        vectors = [encoder.texts(texts).half().tolist() for encoder in self.encoders.values()]
        rows = [
            [bytes.fromhex(content), text, *(halfvec(part[n]) for part in vectors)]
            for n, (content, text) in enumerate(zip(contents, texts, strict=True))
        ]
        statement = sql.SQL("INSERT INTO captions (sha256, caption, {}) VALUES ({}) ON CONFLICT DO NOTHING").format(
            self._columns, sql.SQL(", ").join([sql.Placeholder()] * len(rows[0]))
        )
        with self.database.transaction():
            self.database.write(statement, rows)


_UPSERT = """
INSERT INTO pictures (path, size, mtime_ns, taken, date, sha256) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, taken = excluded.taken,
date = excluded.date, sha256 = excluded.sha256
"""


def _row(picture: Picture) -> list[object]:
    taken = picture.date if picture.taken else None
    return [picture.path, picture.size, picture.mtime_ns, taken, picture.date, bytes.fromhex(picture.sha256)]


def _stored(path: str) -> str:
    """A path as the database can compare it: no row has one that is not UTF-8."""
    return path.encode(errors="replace").decode()
