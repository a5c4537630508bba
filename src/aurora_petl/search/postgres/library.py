"""A library in PostgreSQL as it is read for search."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from psycopg import sql
from torch import Tensor

from ...errors import AuroraError, short
from ..encoder import TUNED, UNTUNED, model_folder
from ..filters import ALL, Filter
from ..manifest import Picture, is_inside
from ..store import Contents, Store
from .address import Address
from .database import About, Database, halfvec

SCANNED = 50_000  # pictures that pass a filter; so many are scanned, of more the graph finds the nearest
OPEN_ENDS = 400  # of a search in the graph: at a million pictures 91% of the ten best, of 100 open ends 71%
FARTHEST = 1_000  # that pgvector allows
_COLUMNS = "path, size, mtime_ns, taken, sha256"


class PostgresLibrary(Store):
    """A library in PostgreSQL that was indexed whole at least once.

    Args:
        address: if it names no library, the database must have one alone.

    Raises:
        AuroraError: if there is none, it is unfinished or of another format, or the folder of its pictures is gone.
    """

    def __init__(self, address: Address) -> None:
        if not address.library:
            address = address.of(_only(address))
        self._database = database = Database(address)
        about = database.about()
        if about is None:
            there = ", ".join(database.libraries()) or "it has none"
            raise AuroraError(
                f"{address}: no such library; make it with aurora index FOLDER --model MODEL {address.option}, or "
                f"name one: {there}"
            )
        if not about.finished:
            raise AuroraError(f"{address} is unfinished; run aurora index again, it goes on where it stopped")
        self.name, self.keys, self.skipped, self.anew = (
            str(address),
            check_keys(about.keys),
            about.skipped,
            database.anew,
        )
        self.width, self.vectors, self._models = about.width, about.vectors, about.models
        self.place, self.model_name = address.option, about.models[0]
        self.folder = _folder(address, about)
        self.gone: set[str] = set()
        self.pictures = Pictures(database)
        self.texts = Texts(database)

    def find_model(self) -> str | None:
        for model in self._models:
            if model_folder(model) is not None or not Path(model).is_absolute():
                return model
        return None

    def candidates(self, view: str, kind: str = "exact") -> NearPictures:
        if not self.pictures:
            raise AuroraError(f"{self.name} holds no pictures; run aurora index when {self.folder} has some")
        return NearPictures(self, self._database, view)

    def captions(self, view: str, kind: str = "exact") -> NearCaptions:
        if not self.texts:
            raise AuroraError(f"{self.name} holds no captions; run aurora index when {self.folder} has some")
        return NearCaptions(self, self._database, view)

    def contents(self, view: str, among: Filter = ALL) -> Contents:
        where, values = conditions(among)
        statement = sql.SQL(
            "SELECT sha256, halfvec_send({view}) FROM features f WHERE EXISTS "
            "(SELECT FROM pictures p WHERE p.sha256 = f.sha256 AND {where})"
        ).format(view=sql.Identifier(view), where=where)
        digests: list[str] = []
        parts: list[Tensor] = []
        for rows in self._database.stream(statement, values, 8192):
            digests += [bytes(content).hex() for content, _ in rows]
            data = b"".join(bytes(sent)[4:] for _, sent in rows)  # behind two numbers of two bytes
            parts.append(torch.from_numpy(np.frombuffer(data, ">f2").astype(np.float16)).view(len(rows), -1))
        if not parts:
            return Contents([], torch.empty(0, self.width, dtype=torch.float16))
        features = torch.cat(parts)
        return Contents(digests, features if self.vectors == 1 else features.view(len(features), self.vectors, -1))

    def of_contents(self, digests: Sequence[str], among: Filter = ALL) -> list[Picture]:
        where, values = conditions(among)
        asked = sql.SQL("SELECT {columns} FROM pictures p WHERE sha256 = ANY(%(digests)s) AND {where} ORDER BY path")
        statement = asked.format(columns=sql.SQL(_COLUMNS), where=where)
        rows = self._database.rows(statement, {**values, "digests": [bytes.fromhex(name) for name in digests]})
        return [picture_of(row) for row in rows]

    def copies(self, among: Filter = ALL) -> list[str]:
        where, values = conditions(among)
        asked = sql.SQL("SELECT sha256 FROM pictures p WHERE {where} GROUP BY sha256 HAVING count(*) > 1")
        return [bytes(content).hex() for (content,) in self._database.rows(asked.format(where=where), values)]


class Pictures(Sequence[Picture]):
    """The pictures of a library by their number in the database, looked up when they are asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._count: int = database.one("SELECT count(*) FROM pictures")
        self._row = lru_cache(maxsize=4096)(self._look_up)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        return self._row(int(row))

    def _look_up(self, row: int) -> Picture:
        if not -(2**63) <= row < 2**63:
            raise IndexError(row)
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM pictures WHERE id = %s", [row])
        if not rows:
            raise IndexError(row)
        return picture_of(rows[0])


class Texts(Sequence[str]):
    """The captions of a library, likewise."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._count: int = database.one("SELECT count(*) FROM captions")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        caption = self._database.one("SELECT caption FROM captions WHERE id = %s", [int(row)])
        if caption is None:
            raise IndexError(row)
        return caption


class NearPictures:
    """The pictures of a library, see `store.Candidates`: scanned, or found through the graph where there is one and the
    filter lets many through."""

    def __init__(self, library: PostgresLibrary, database: Database, view: str) -> None:
        self._library, self._database, self._view = library, database, sql.Identifier(view)
        self._has_graph = bool(database.one("SELECT to_regclass(%s) IS NOT NULL", [graph_name(view)]))

    def __len__(self) -> int:
        return len(self._library.pictures)

    def search(self, query: Tensor, k: int, among: Filter = ALL) -> list[tuple[int, float]]:
        where, values = conditions(among)
        names = {"view": self._view, "where": where, "score": self._score(query)}
        values |= {"query": halfvec(query.flatten().tolist()), "k": k}
        if self._has_graph and k <= FARTHEST and not self._are_few(among):
            return self._by_graph(sql.SQL(GRAPH_AMONG if among else GRAPH).format(**names), values)
        return self._database.rows(sql.SQL(SCAN_AMONG if among else SCAN).format(**names), values)

    def _score(self, query: Tensor) -> sql.Composable:
        """The similarity, see `backbones.base.similarity`: a scan, since no index is of its form."""
        names = {
            "view": self._view,
            "width": sql.Literal(self._library.width),
            "vectors": sql.Literal(self._library.vectors),
        }
        if self._library.vectors == 1:
            return sql.SQL("-({view} <#> %(query)s::halfvec)").format(**names)
        if query.dim() == 3:
            return sql.SQL("-({view} <#> %(query)s::halfvec) / {vectors}").format(**names)
        return sql.SQL(
            "(SELECT max(-(subvector({view}, {width} * n + 1, {width}) <#> %(query)s::halfvec)) "
            "FROM generate_series(0, {vectors} - 1) AS n)"
        ).format(**names)

    def _are_few(self, among: Filter) -> bool:
        if not among:
            return False
        where, values = conditions(among)
        asked = sql.SQL("SELECT count(*) FROM (SELECT FROM pictures p WHERE {where} LIMIT {most}) AS chosen")
        statement = asked.format(where=where, most=sql.Literal(SCANNED + 1))
        return self._database.one(statement, values) <= SCANNED

    def _by_graph(self, statement: sql.Composable, values: dict[str, Any]) -> list[tuple[int, float]]:
        ends = min(FARTHEST, max(OPEN_ENDS, 2 * values["k"]))
        with self._database.alone():
            self._database.rows(
                "SELECT set_config('hnsw.ef_search', %s, false), "
                "set_config('hnsw.iterative_scan', 'strict_order', false)",
                [str(ends)],
            )
            return self._database.rows(statement, values)


class NearCaptions:
    """The captions of a library, scanned, see `store.Candidates`."""

    def __init__(self, library: PostgresLibrary, database: Database, view: str) -> None:
        self._library, self._database, self._view = library, database, sql.Identifier(view)

    def __len__(self) -> int:
        return len(self._library.texts)

    def search(self, query: Tensor, k: int, among: Filter = ALL) -> list[tuple[int, float]]:
        parts = query.reshape(-1, query.shape[-1]).tolist()  # of a picture with several vectors the nearest counts
        statement = sql.SQL(
            "SELECT id, (SELECT max(-({view} <#> part::halfvec)) FROM unnest(%(query)s::text[]) AS part) AS score "
            "FROM captions ORDER BY score DESC, id LIMIT %(k)s"
        ).format(view=self._view)
        return self._database.rows(statement, {"query": [halfvec(part) for part in parts], "k": k})


SCAN = """
SELECT p.id, near.score FROM (SELECT sha256, {score} AS score FROM features ORDER BY score DESC LIMIT %(k)s) AS near
JOIN pictures p USING (sha256) ORDER BY near.score DESC, p.id LIMIT %(k)s
"""
SCAN_AMONG = """
SELECT p.id, near.score FROM
(SELECT sha256, {score} AS score FROM features WHERE sha256 IN (SELECT p.sha256 FROM pictures p WHERE {where})
 ORDER BY score DESC LIMIT %(k)s) AS near
JOIN pictures p USING (sha256) WHERE {where} ORDER BY near.score DESC, p.id LIMIT %(k)s
"""
GRAPH = """
SELECT p.id, -near.distance AS score FROM
(SELECT sha256, {view} <#> %(query)s::halfvec AS distance FROM features ORDER BY distance LIMIT %(k)s) AS near
JOIN pictures p USING (sha256) ORDER BY near.distance, p.id LIMIT %(k)s
"""
GRAPH_AMONG = """
SELECT p.id, -(f.{view} <#> %(query)s::halfvec) AS score FROM features f JOIN pictures p USING (sha256)
WHERE {where} ORDER BY f.{view} <#> %(query)s::halfvec LIMIT %(k)s
"""


def graph_name(view: str) -> str:
    """Of the HNSW index of a view."""
    return f"features_{view}_graph"


def conditions(among: Filter) -> tuple[sql.Composable, dict[str, Any]]:
    """A filter as SQL about ``pictures p``, and the values in it."""
    parts: list[str] = []
    values: dict[str, Any] = {}
    if among.under:
        parts.append("p.path >= %(first)s AND p.path < %(last)s")
        values["first"], values["last"] = among.bounds()
    if among.after is not None:
        parts.append("p.date >= %(after)s")
        values["after"] = among.after
    if among.before is not None:
        parts.append("p.date < %(before)s")
        values["before"] = among.before
    return sql.SQL(" AND ".join(parts) or "true"), values  # type: ignore[arg-type]


def picture_of(row: tuple) -> Picture:
    """A picture of the columns that the statements here ask for.

    Raises:
        AuroraError: if its path would leave the folder.
    """
    path, size, mtime_ns, taken, content = row
    if not is_inside(path):
        raise AuroraError(f"the store holds {short(path)}, which is no path inside a folder; remove that row")
    when = taken.isoformat() if isinstance(taken, datetime) else None
    return Picture(path, size, mtime_ns, bytes(content).hex(), when)


def check_keys(keys: dict[str, str]) -> dict[str, str]:
    """The keys by view, in the order in which views are shown."""
    return {view: keys[view] for view in (TUNED, UNTUNED) if view in keys}


def _only(address: Address) -> str:
    """The one library of the database."""
    with Database(address) as database:
        there = database.libraries()
    if len(there) != 1:
        have = (
            f"{len(there)} libraries: {', '.join(there)}"
            if there
            else f"no library; make one with aurora index FOLDER --model MODEL {address.option}"
        )
        name = "; name one with ?library=NAME" if there else ""
        raise AuroraError(f"{address} has {have}{name}")
    return there[0]


def _folder(address: Address, about: About) -> Path:
    for folder in about.folders:
        if Path(folder).is_dir():
            return Path(folder)
    raise AuroraError(
        f"the pictures of {address} are not in {' nor '.join(about.folders)}; index them where they are on this "
        f"machine with aurora index FOLDER --model {quote(about.models[0])} {address.option}, which encodes none again"
    )
