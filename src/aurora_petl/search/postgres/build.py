"""A library in PostgreSQL brought up to date with a folder, by any number of processes on any number of machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from psycopg import sql
from psycopg.types.json import Jsonb
from tqdm import tqdm

from ...distributed import from_first, objects, rank, start, together
from ...errors import AuroraError, one_line
from ..encoder import Encoder, load_encoder, model_folder, run_folder, views_of
from ..lines import Update
from ..scan import Content, look
from ..shards import digest
from .address import Address
from .database import About, Database
from .library import SCANNED, graph_name
from .writer import Writer

SAMPLE = 100  # pictures by which a folder is known again
PLACES = 50  # folders that a library remembers
INDEXED = 4000  # dimensions that pgvector's graph takes
GRAPH_MEMORY = 2048  # MB of the server's memory that making it takes at most


def build_library(folder: Path, address: Address, model: str, *, progress: bool = True) -> Update:
    """Make the library at ``address`` that of the pictures under ``folder`` by ``model``, encoding only what it does
    not hold yet. As many processes as like may do so at once.

    Args:
        address: without a library's name it is called as the folder is.

    Raises:
        AuroraError: if there is no such folder, model or picture, the server does not answer or lacks pgvector, or the
            library is of another model or folder.
    """
    start()
    if not address.library:
        address = address.of(os.path.basename(os.path.realpath(folder)))
    with together():
        content = look(folder)
        model = str(run_folder(model) or model)
        encoders = {view: load_encoder(model, view) for view in views_of(model)}
        database = Database(address, create=True)
    with database:
        with together():
            before = _begin(database, folder, model, encoders)
        with (
            together(),
            tqdm(total=len(content.files), desc="pictures", leave=False, disable=not progress or rank() > 0) as bar,
        ):
            writer = Writer(database, folder, encoders, bar.update)
            writer.add_pictures(content.files)
            writer.add_captions(content.texts)
        shares = objects((writer.encoded, writer.skipped))
        update = None
        with together():
            if rank() == 0:
                skipped = content.skipped | {
                    one_line(p): one_line(why) for _, part in shares for p, why in part.items()
                }
                encoded = sum(count for count, _ in shares)
                update = _finish(database, folder, content, before, skipped, encoded)
                make_graphs(database, list(encoders))
        return from_first(update)


def _begin(database: Database, folder: Path, model: str, encoders: dict[str, Encoder]) -> set[str]:
    """Make the library if there is none, and see that it is of this model and folder; the captions that it has."""
    keys = {view: encoder.key() for view, encoder in encoders.items()}
    about = database.about()
    if about is None:
        encoder = next(iter(encoders.values()))
        shape = encoder.pictures(encoder.transform(Image.new("RGB", (64, 64)))[None]).shape
        database.create(keys, shape[-1], shape[1] if len(shape) == 3 else 1)
        about = database.about()
        assert about is not None
    _check(database, about, folder, model, keys)
    own = model_folder(model)
    for column, place in (("models", model if own is None else str(own.resolve())), ("folders", str(folder.resolve()))):
        name = sql.Identifier(column)
        statement = sql.SQL(
            "UPDATE about SET {0} = (ARRAY[%(place)s::text] || array_remove({0}, %(place)s::text))[:{1}]"
        )
        database.rows(statement.format(name, sql.SQL(str(PLACES))), {"place": place})
    return {bytes(content).hex() for (content,) in database.rows("SELECT sha256 FROM captions")}


def _check(database: Database, about: About, folder: Path, model: str, keys: dict[str, str]) -> None:
    if about.keys != keys:
        made = about.models[0] if about.models else "another"
        raise AuroraError(
            f"{database.address} was made with another model than {model} is ({made}); name another ?library=, or "
            f"{database.anew}"
        )
    if str(folder.resolve()) in about.folders:
        return
    # under another name, or on another machine: known by what lies in it
    rows = database.rows("SELECT path FROM pictures ORDER BY md5(path) LIMIT %s", [SAMPLE])
    there = sum(os.path.lexists(folder / path) for (path,) in rows)
    if 2 * there < len(rows):
        raise AuroraError(
            f"{database.address} is of another folder ({about.folders[0]}): of {len(rows)} of its pictures {folder} "
            f"has {there}; name another ?library="
        )


def _finish(
    database: Database, folder: Path, content: Content, before: set[str], skipped: dict[str, str], encoded: int
) -> Update:
    """Take out what is no longer in the folder, and mark the library as whole."""
    gone: list[str] = []
    for rows in database.stream("SELECT path FROM pictures", None, 8192):
        # others may have indexed what is newer than our list
        gone += [path for (path,) in rows if path not in content.files and not os.path.lexists(folder / path)]
    texts = {digest(text.encode()) for text in content.texts}
    with database.transaction():
        database.rows("DELETE FROM pictures WHERE path = ANY(%s)", [gone])
        database.rows("DELETE FROM captions WHERE sha256 = ANY(%s)", [[bytes.fromhex(one) for one in before - texts]])
        database.rows(
            "DELETE FROM features WHERE sha256 IN (SELECT sha256 FROM features f WHERE NOT EXISTS "
            "(SELECT FROM pictures p WHERE p.sha256 = f.sha256) FOR UPDATE SKIP LOCKED)"
        )
        database.rows("UPDATE about SET skipped = %s, finished = now()", [Jsonb(skipped)])
    count = database.one("SELECT count(*) FROM pictures")
    return Update(count, encoded, len(gone), len(content.texts), skipped, content.others, content.absent, content.note)


def make_graphs(database: Database, views: Sequence[str], least: int | None = None) -> None:
    """An HNSW index of each view where there are many pictures; the server keeps it up to date from then on.

    Args:
        least: more contents than these are many.
    """
    width, vectors = database.rows("SELECT width, vectors FROM about")[0]
    database.rows("ANALYZE features, pictures")
    count = database.one("SELECT count(*) FROM features")
    if vectors > 1 or width > INDEXED or count <= (SCANNED if least is None else least):
        return
    if not database.claim(["graphs"]):
        return  # another process makes them
    with database.transaction():
        # a graph that does not fit takes hours; an entry of the graph is a vector and about 900 bytes
        wanted = min(GRAPH_MEMORY, count * (2 * width + 900) // 2**20 + 64)
        held = database.one("SELECT setting::bigint / 1024 FROM pg_settings WHERE name = 'maintenance_work_mem'")
        database.rows("SELECT set_config('maintenance_work_mem', %s, true)", [f"{max(wanted, held)}MB"])
        for view in views:
            database.rows(
                sql.SQL("CREATE INDEX IF NOT EXISTS {} ON features USING hnsw ({} halfvec_ip_ops)").format(
                    sql.Identifier(graph_name(view)), sql.Identifier(view)
                )
            )
    database.release(["graphs"])
