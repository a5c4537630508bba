"""Latency and recall of candidate search over a large library: exact, IVF and HNSW through faiss.

    OMP_NUM_THREADS=1 python benchmarks/search_latency.py --json search-latency.json

Rows are synthetic: unit vectors around random centres, so that neighbourhoods have a structure which an approximate
index can use. Queries are drawn from the same clusters but are not rows. Each is asked alone, as a person asks, on one
thread; seconds are those of the thread, in which other processes have no part. Memory is that of faiss's index.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_petl.files import write_json
from aurora_petl.report import table
from aurora_petl.search.nearest import Nearest, recall_against_exact


def clustered(rows: int, width: int, clusters: int, spread: float, seed: int) -> Tensor:
    """(rows, width) unit vectors; ``spread`` is the length of the noise against that of a centre. Centres are the same
    for every seed."""
    centres = F.normalize(torch.randn(clusters, width, generator=torch.Generator().manual_seed(0)), dim=1)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width, generator=draw) / width**0.5
    return F.normalize(centres[torch.randint(clusters, (rows,), generator=draw)] + spread * noise, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(rows=100_000, width=256, clusters=2000, queries=1000, k=10).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--spread", type=float, default=1.5, help="noise against centre, 1.5 if not given")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()

    items = clustered(options.rows, options.width, options.clusters, options.spread, 1)
    queries = clustered(options.queries, options.width, options.clusters, options.spread, 2)
    faiss.omp_set_num_threads(1)
    results = {}
    for kind in ("exact", "ivf", "hnsw"):
        started = time.thread_time()
        nearest = Nearest(items, kind)
        built = time.thread_time() - started
        times = []
        for query in queries[:, None]:
            started = time.thread_time()
            nearest.search(query, options.k)
            times.append(1e3 * (time.thread_time() - started))
        results[kind] = {
            "p50_ms": float(np.percentile(times, 50)),
            "p99_ms": float(np.percentile(times, 99)),
            f"recall@{options.k}": recall_against_exact(nearest, items, queries, options.k),
            "build_seconds": built,
            "memory_mib": len(faiss.serialize_index(nearest._index)) / 2**20,
        }
    columns = list(results["exact"])
    body = [[kind, *(f"{found[name]:.3f}" for name in columns)] for kind, found in results.items()]
    print(f"{options.rows:,} rows of {options.width}, one thread\n{table(['', *columns], body)}")
    if options.json:
        setting = {name: value for name, value in vars(options).items() if name != "json"}
        write_json(options.json, {"setting": setting, "faiss": faiss.__version__, "results": results})


if __name__ == "__main__":
    main()
