"""A connection to a library's schema, and the tables in it.

Every library has a schema of its own, ``aurora_NAME``, on which the connection's search path is set, so that the names
in every statement are fixed. Values are always bound.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from ...errors import AuroraError, first_line
from .address import PREFIX, Address

FORMAT = 1
PGVECTOR = (0, 8)  # halfvec is of 0.7, scans that go on until a filter has let through enough of 0.8
_PLACE = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
# by which the server notices within a minute that a machine is gone, whose locks others wait for
_KEEPALIVES = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
TABLES = """
CREATE TABLE about (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    keys jsonb NOT NULL,       -- view -> key of the model
    width integer NOT NULL,    -- of a vector
    vectors integer NOT NULL,  -- of a picture, which lie one after the other
    models text[] NOT NULL,    -- its name, or its folder on each machine, the latest first
    folders text[] NOT NULL,   -- that of the pictures on each machine, the latest first
    skipped jsonb NOT NULL DEFAULT '{{}}',
    finished timestamptz       -- null: never yet
);
CREATE TABLE features (
    sha256 bytea PRIMARY KEY,
    {pictures}
);
CREATE TABLE pictures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path text COLLATE "C" NOT NULL UNIQUE,
    size bigint NOT NULL,
    mtime_ns bigint NOT NULL,
    taken timestamp,
    date timestamp NOT NULL,
    sha256 bytea NOT NULL REFERENCES features
);
CREATE INDEX pictures_sha256 ON pictures (sha256);
CREATE INDEX pictures_date ON pictures (date);
CREATE TABLE captions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sha256 bytea NOT NULL UNIQUE,
    caption text NOT NULL,
    {captions}
);
"""


@dataclass(frozen=True)
class About:
    """What a library is of."""

    keys: dict[str, str]
    width: int
    vectors: int
    models: list[str]
    folders: list[str]
    skipped: dict[str, str]
    finished: bool


class Database:
    """A library's schema. Threads may share it.

    Raises:
        AuroraError: if the server does not answer, is of another encoding, or lacks pgvector, without which
            it holds no library.
    """

    def __init__(self, address: Address, *, create: bool = False) -> None:
        self.address, self._create = address, create
        self._lock = threading.RLock()
        self._connection = self._connect()

    def _connect(self) -> psycopg.Connection:
        defaults = {
            "connect_timeout": "10",
            "application_name": "aurora",
        }
        with self._errors("does not answer"):
            connection = psycopg.connect(
                **{**defaults, **self.address.fields, "client_encoding": "utf8"},  # type: ignore[arg-type]
                autocommit=True,
                prepare_threshold=None,  # a plan that fits every value fits none of them well
            )
        with self._errors():
            encoding = connection.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise AuroraError(f"{self.address} is a database in {encoding}; make one in UTF8")
            self._check_extension(connection)
            for name, seconds in _KEEPALIVES.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, seconds])
            place = _one(connection.execute(_PLACE))
            if self.address.library:
                path = sql.SQL(", ").join([sql.Identifier(self.address.schema), sql.SQL(place), sql.SQL("pg_temp")])
                connection.execute("SELECT set_config('search_path', %s, false)", [path.as_string(connection)])
        return connection

    def _check_extension(self, connection: psycopg.Connection) -> None:
        asked = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        version = _one(connection.execute(asked))
        if version is None and self._create:
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", [lock_key("extension")])
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error:  # not installed, or no right to
                pass
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s)", [lock_key("extension")])
            version = _one(connection.execute(asked))
        if version is None and not self._create:
            raise AuroraError(
                f"{self.address} holds no library; make one with aurora index FOLDER --model MODEL "
                f"{self.address.option}"
            )
        if version is None:
            raise AuroraError(
                f"{self.address} lacks the extension vector; install pgvector on the server (on Debian "
                "postgresql-N-pgvector) and have its owner run CREATE EXTENSION vector"
            )
        if tuple(int(part) for part in str(version).split(".")[:2]) < PGVECTOR:
            raise AuroraError(
                f"{self.address} has pgvector {version}; {'.'.join(map(str, PGVECTOR))} or newer is needed: update it "
                "on the server and run ALTER EXTENSION vector UPDATE"
            )

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Statements

    def rows(self, statement: Any, values: Any = None) -> list[tuple]:
        """What a statement gives. A connection that broke is made anew, unless a transaction or a lock was lost."""
        with self._lock, self._errors():
            try:
                return self._run(statement, values)
            except psycopg.OperationalError:
                if not self._connection.broken or self._create:
                    raise
                self._connection = self._connect()
                return self._run(statement, values)

    def one(self, statement: Any, values: Any = None) -> Any:
        """The first field of the first row; None if there is no row."""
        rows = self.rows(statement, values)
        return rows[0][0] if rows else None

    def _run(self, statement: Any, values: Any) -> list[tuple]:
        cursor = self._connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def write(self, statement: Any, rows: Sequence[Sequence[Any]]) -> int:
        """Run a statement for each row of values; how many rows of the table it came to."""
        if not rows:
            return 0
        with self._lock, self._errors(), self._connection.cursor() as cursor:
            cursor.executemany(statement, rows)
            return cursor.rowcount

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is said within is of this thread alone."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is said within happens whole or not at all, and is of this thread alone."""
        with self._lock, self._errors(), self._connection.transaction():
            yield

    def stream(self, statement: Any, values: Any, size: int) -> Iterator[list[tuple]]:
        """What a statement gives, ``size`` rows at a time."""
        connection = self._connection
        with self._lock, self._errors(), connection.transaction(), connection.cursor(name="aurora") as cursor:
            cursor.execute(statement, values)
            while rows := cursor.fetchmany(size):
                yield rows

    @contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            why = first_line(error, 300)
            raise AuroraError(f"{self.address} {what}: {why}" if what else f"{self.address}: {why}") from error

    # Locks, which the server lets go of when the connection ends, however it ends

    def claim(self, names: Iterable[str]) -> set[str]:
        """Those of ``names`` that nobody has claimed, which are this connection's from now on."""
        keys = {lock_key(self.address.library, name): name for name in names}
        got = self.rows("SELECT key FROM unnest(%s::bigint[]) AS key WHERE pg_try_advisory_lock(key)", [list(keys)])
        return {keys[key] for (key,) in got}

    def release(self, names: Iterable[str]) -> None:
        """Let others claim what this connection has claimed."""
        keys = [lock_key(self.address.library, name) for name in names]
        self.rows("SELECT pg_advisory_unlock(key) FROM unnest(%s::bigint[]) AS key", [keys])

    # The library

    def libraries(self) -> list[str]:
        """Those of the database."""
        names = self.rows("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) ORDER BY 1", [PREFIX])
        return [name.removeprefix(PREFIX) for (name,) in names]

    def about(self) -> About | None:
        """What the library is of; None if there is none.

        Raises:
            AuroraError: if it is of another format.
        """
        # in this order, since another process may make both, in one transaction, between the two questions
        if self.one("SELECT to_regnamespace(%s) IS NULL", [_quoted(self.address.schema)]):
            return None
        if not self._is_made():
            raise AuroraError(f"{self.address} is no library, its schema lacks the table about; {self.anew}")
        version = self.one("SELECT to_jsonb(about) -> 'format' FROM about")
        if version != FORMAT:
            raise AuroraError(f"{self.address} has format {version}, not {FORMAT}; {self.anew}")
        row = self.rows("SELECT keys, width, vectors, models, folders, skipped, finished IS NOT NULL FROM about")[0]
        return About(*row)

    @property
    def anew(self) -> str:
        """How to make the library again."""
        return f"remove it with DROP SCHEMA {_quoted(self.address.schema)} CASCADE and run aurora index again"

    def _is_made(self) -> bool:
        return bool(self.one("SELECT to_regclass(%s) IS NOT NULL", [_quoted(self.address.schema, "about")]))

    def create(self, keys: dict[str, str], width: int, vectors: int) -> None:
        """Make the tables of the library, unless it has them."""
        size = width * vectors
        columns = {
            "pictures": ", ".join(f"{view} halfvec({size}) NOT NULL" for view in keys),
            "captions": ", ".join(f"{view} halfvec({width}) NOT NULL" for view in keys),
        }
        # before the transaction, at whose beginning the server's caches are brought up to date
        key = [lock_key(self.address.library, "create")]
        self.rows("SELECT pg_advisory_lock(%s)", key)
        try:
            if not self._is_made():
                self._make(keys, columns, width, vectors)
        finally:
            self.rows("SELECT pg_advisory_unlock(%s)", key)

    def _make(self, keys: dict[str, str], columns: dict[str, str], width: int, vectors: int) -> None:
        with self.transaction():
            self.rows(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self.address.schema)))
            self.rows(TABLES.format(**columns))
            self.rows(
                "INSERT INTO about (format, keys, width, vectors, models, folders) VALUES (%s, %s, %s, %s, '{}', '{}')",
                [FORMAT, Jsonb(keys), width, vectors],
            )


def lock_key(*names: str) -> int:
    """The number under which PostgreSQL locks something."""
    made = hashlib.sha256("\0".join(("aurora", *names)).encode(errors="surrogateescape")).digest()
    return int.from_bytes(made[:8], "big", signed=True)


def halfvec(values: Sequence[float]) -> str:
    """A vector as PostgreSQL reads it; five digits name a float16."""
    return f"[{','.join(f'{value:.5g}' for value in values)}]"


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string(None)


def _one(cursor: psycopg.Cursor) -> Any:
    row = cursor.fetchone()
    return None if row is None else row[0]
