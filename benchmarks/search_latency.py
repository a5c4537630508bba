"""Latency and recall of candidate search over a large library: exact, IVF and HNSW through faiss, as the index in a
folder uses them, and a scan, HNSW and filters in PostgreSQL.

    OMP_NUM_THREADS=1 python benchmarks/search_latency.py --json search-latency.json
    OMP_NUM_THREADS=1 python benchmarks/search_latency.py --folder
    OMP_NUM_THREADS=1 python benchmarks/search_latency.py --store postgresql://user@host/scratch?library=latency

Rows are synthetic: unit vectors around random centres, so that neighbourhoods have a structure which an approximate
index can use, or with ``--data random`` unit vectors without any. Queries are drawn from the same clusters but are not
rows. Each is asked alone, as a person asks. In memory the seconds are those of the thread, in which other processes
have no part, and memory is that of faiss's index. Of an index in a folder the seconds are those of the clock, and
memory is the process's beyond what it had before. Of PostgreSQL the seconds are the client's, from the query's feature
to the rows, and memory is what tables and graph take; the library of that name is made anew and left there. The filters
let through a folder of a hundredth, and the latter half of all dates.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_petl.files import write_json
from aurora_petl.report import table
from aurora_petl.search.nearest import Nearest, recall_against_exact, top_k

FOLDERS = 100
SCANS, WARM = 40, 20  # queries that are scanned for; queries before those that count
KINDS = ("exact", "ivf", "hnsw")
Rows = Any


def clustered(rows: int, width: int, clusters: int, spread: float, seed: int) -> Tensor:
    """(rows, width) unit vectors; ``spread`` is the length of the noise against that of a centre. Centres are the same
    for every seed."""
    centres = F.normalize(torch.randn(clusters, width, generator=torch.Generator().manual_seed(0)), dim=1)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(clusters, (rows,), generator=draw)
    made = torch.empty(rows, width, dtype=torch.float16)
    for part, into in zip(chosen.split(65_536), made.split(65_536), strict=True):
        noise = torch.randn(len(part), width, generator=draw) / width**0.5
        into.copy_(F.normalize(centres[part] + spread * noise, dim=1))
    return made


def random(rows: int, width: int, seed: int) -> Tensor:
    """(rows, width) unit vectors in all directions."""
    return clustered(rows, width, 1, 1e6, seed)


def timed(ask: Callable[[Tensor], Rows], queries: Tensor, clock: Callable[[], float]) -> tuple[Rows, dict[str, float]]:
    """What each query finds, and the milliseconds that it takes."""
    found, times = [], []
    for query in queries[:, None].float():
        started = clock()
        found.append(ask(query))
        times.append(1e3 * (clock() - started))
    return found, {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}


def in_memory(items: Tensor, queries: Tensor, kinds: list[str], k: int) -> dict[str, dict[str, float]]:
    """Figures of `nearest.Nearest` by kind."""
    faiss.omp_set_num_threads(1)
    results = {}
    for kind in kinds:
        started = time.thread_time()
        nearest = Nearest(items, kind)
        built = time.thread_time() - started
        _, times = timed(partial(nearest.search, k=k), queries, time.thread_time)
        results[kind] = {
            **times,
            f"recall@{k}": recall_against_exact(nearest, items, queries.float(), k),
            "build_seconds": built,
            "memory_mib": len(faiss.serialize_index(nearest._index)) / 2**20,
        }
    return results


def in_folder(items: Tensor, queries: Tensor, kinds: list[str], k: int) -> dict[str, dict[str, float]]:
    """Figures of an index in a folder: what opening it takes, and queries by kind."""
    from aurora_petl.search.filters import ALL, Filter
    from aurora_petl.search.library import Library
    from aurora_petl.search.manifest import Manifest, Picture, Place
    from aurora_petl.search.shards import SHARD, Shards

    dates = np.datetime64("2000-01-01", "s") + np.arange(len(items)) * np.timedelta64(600, "s")
    results = {}
    with tempfile.TemporaryDirectory() as place:
        out, keys = Path(place), {"untuned": "0" * 64}
        names = [f"{number:064x}" for number in range(len(items))]
        shards = Shards(out, "pictures", keys)
        for first in range(0, len(items), SHARD):
            shards.add(names[first : first + SHARD], {"untuned": items[first : first + SHARD]})
        shards.flush()
        pictures = [
            Picture(f"{n % FOLDERS:02}/{n:07}.jpg", 1, 1, names[n], str(date)) for n, date in enumerate(dates.tolist())
        ]
        Manifest("blip-mini", Place.of(Path.cwd(), out), keys, pictures, [], {}).write(out)
        del pictures, shards
        before, started = resident(), time.perf_counter()
        library = Library(out)
        opened = time.perf_counter() - started
        filters = {
            "": ALL,
            ", a folder of 1%": Filter(under="07"),
            ", after a date, 50%": Filter(after=dates[len(items) // 2].item()),
        }
        for kind in kinds:
            started = time.perf_counter()
            near = library.candidates("untuned", kind)
            built = time.perf_counter() - started
            for name, among in filters.items():
                ask = partial(near.search, k=k, among=among)
                first_asked = time.perf_counter()
                ask(queries[:1].float())
                first_asked = time.perf_counter() - first_asked
                _, times = timed(ask, queries[:SCANS], time.perf_counter)
                results[f"{kind}{name}"] = {
                    **times,
                    "first_query_s": first_asked,
                    "open_s": opened,
                    "load_and_build_s": built,
                    "memory_mib": resident() - before,
                }
                print(kind + name, results[f"{kind}{name}"], flush=True)
            del near, ask
    return results


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def in_postgres(store: str, items: Tensor, queries: Tensor, k: int) -> dict[str, dict[str, float]]:
    """Figures of a library in PostgreSQL: scanned, by its graph, and filtered."""
    from aurora_petl.search.filters import ALL, Filter
    from aurora_petl.search.postgres.address import parse_address
    from aurora_petl.search.postgres.build import make_graphs
    from aurora_petl.search.postgres.database import Database
    from aurora_petl.search.postgres.library import PostgresLibrary

    address = parse_address(store)
    dates = np.datetime64("2000-01-01T00:00", "us") + np.arange(len(items)) * np.timedelta64(10, "m")
    with Database(address, create=True) as database:
        database.rows(f'DROP SCHEMA IF EXISTS "{address.schema}" CASCADE')
        database.create({"untuned": "0" * 64}, items.shape[1], 1)
        started = time.perf_counter()
        fill(database, items, dates)
        filled = time.perf_counter() - started
        database.rows(
            "UPDATE about SET finished = now(), models = %s, folders = %s", [["blip-mini"], [str(Path.cwd())]]
        )
        database.rows("VACUUM ANALYZE features")
        database.rows("VACUUM ANALYZE pictures")
        results = {}
        half = len(items) // 2
        filters = {
            "": (ALL, torch.arange(len(items))),
            ", a folder of 1%": (Filter(under="07"), torch.arange(7, len(items), FOLDERS)),
            ", after a date, 50%": (Filter(after=dates[half].item()), torch.arange(half, len(items))),
        }
        for way in ("scan", "graph"):
            built = filled
            if way == "graph":
                started = time.perf_counter()
                make_graphs(database, ["untuned"], 0)
                built = time.perf_counter() - started
            near = PostgresLibrary(address).candidates("untuned")
            size = database.one(
                "SELECT sum(pg_total_relation_size(c)) FROM unnest('{features,pictures}'::regclass[]) c"
            )
            asked = queries if way == "graph" else queries[:SCANS]
            for name, (among, rows) in filters.items():
                if name and way == "scan":
                    continue
                ask = partial(near.search, k=k, among=among)
                timed(ask, asked[:WARM], time.perf_counter)
                found, times = timed(ask, asked, time.perf_counter)
                right = rows[top_k(asked.float(), items[rows], k)[1]].tolist()
                hits = sum(
                    len({row - 1 for row, _ in ours} & set(best)) for ours, best in zip(found, right, strict=True)
                )
                results[way + name] = {
                    **times,
                    f"recall@{k}": hits / (k * len(asked)),
                    "build_seconds": built,
                    "memory_mib": float(size) / 2**20,
                }
                print(way + name, results[way + name], flush=True)
        return results


def fill(database: object, items: Tensor, dates: np.ndarray) -> None:
    """Pictures of these features, whose numbers in the database begin at 1."""
    connection = database._connection  # type: ignore[attr-defined]
    draw = np.random.default_rng(0)
    names = draw.bytes(32 * len(items))
    width = items.shape[1]
    head = (4 + 2 * width).to_bytes(4, "big") + width.to_bytes(2, "big") + b"\0\0"
    with connection.cursor() as cursor, cursor.copy("COPY features FROM STDIN (FORMAT binary)") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for number, row in enumerate(items.numpy().astype(">f2")):
            copy.write(b"\0\2\0\0\0\x20" + names[32 * number : 32 * number + 32] + head + row.tobytes())
        copy.write(b"\xff\xff")
    columns = "path, size, mtime_ns, date, sha256"
    with connection.cursor() as cursor, cursor.copy(f"COPY pictures ({columns}) FROM STDIN") as copy:
        for number, date in enumerate(dates.tolist()):
            path, content = f"{number % FOLDERS:02}/{number:07}.jpg", names[32 * number : 32 * number + 32]
            copy.write_row((path, 1, 1, date, content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(rows=100_000, width=256, clusters=2000, queries=1000, k=10).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--spread", type=float, default=1.5, help="noise against centre, 1.5 if not given")
    parser.add_argument("--data", choices=("clustered", "random"), default="clustered", help="clustered if not given")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="of faiss; all if not given")
    parser.add_argument("--folder", action="store_true", help="measure an index in a folder, from files on")
    parser.add_argument("--store", help="address of a library in PostgreSQL, which is measured in the place of memory")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()

    items, queries = (
        random(rows, options.width, seed)
        if options.data == "random"
        else clustered(rows, options.width, options.clusters, options.spread, seed)
        for rows, seed in ((options.rows, 1), (options.queries, 2))
    )
    if options.store:
        results = in_postgres(options.store, items, queries, options.k)
    elif options.folder:
        results = in_folder(items, queries, options.kinds, options.k)
    else:
        results = in_memory(items, queries, options.kinds, options.k)
    columns = list(next(iter(results.values())))
    body = [[kind, *(f"{found[name]:.3f}" for name in columns)] for kind, found in results.items()]
    print(f"{options.rows:,} {options.data} rows of {options.width}, one thread\n{table(['', *columns], body)}")
    if options.json:
        setting = {name: value for name, value in vars(options).items() if name not in ("json", "store")}
        write_json(options.json, {"setting": setting, "faiss": faiss.__version__, "results": results})


if __name__ == "__main__":
    main()
