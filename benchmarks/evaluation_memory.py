"""Memory and time of evaluating retrieval at COCO's size, the model aside: random features, candidates, ranks.

    OMP_NUM_THREADS=2 python benchmarks/evaluation_memory.py --json evaluation-memory.json

"blocks" is what evaluation does (`evaluation/scores.py`); "matrices" is its definition on whole matrices: similarity,
masks of both directions' candidates, scores of both, ranks. Match logits are the similarity plus noise that depends on
the pair, so both rescore the same candidates alike. Each runs in a process of its own, whose most resident memory is
told less what it held before; it stops if their metrics differ. What else an evaluation holds has bounds of its own,
see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aurora_petl.backbones.base import Texts
from aurora_petl.evaluation.features import Features
from aurora_petl.evaluation.recall import Ranks, rank_metrics, ranks_of
from aurora_petl.evaluation.scores import BELOW, Scores, Similarity, candidates, scored
from aurora_petl.files import write_json


def split(options: argparse.Namespace) -> Features:
    """Random features of unit length, every text near its picture; five texts a picture at COCO's size."""
    torch.manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(options.pictures, options.width), dim=1)
    own = torch.arange(options.texts) * options.pictures // options.texts
    text = torch.nn.functional.normalize(image[own] + 5 * torch.randn(options.texts, options.width) / 16, dim=1)
    none = torch.zeros(1)
    ids = [f"{number}" for number in range(options.pictures)]
    text_ids = [ids[number] for number in own.tolist()]
    return Features(image, text, Texts(none, none), ids, text_ids, text_ids, none, range(len(ids)))


def noise(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """A number in [0, 4) that depends on the pair alone."""
    mixed = (image.astype(np.uint64) * 2654435761 + text.astype(np.uint64) * 40503) % 65521
    return (mixed / 65521 * 4).astype(np.float32)


def blocks(features: Features, k: int) -> dict[str, float]:
    near = Similarity(features.image, features.text)
    own = candidates(near, k)
    own = scored(own, 20 * own.near + noise(own.image, own.text), 0.0)
    return Scores(near, own).metrics(features)


def matrices(features: Features, k: int) -> dict[str, float]:
    near = features.image @ features.text.T

    def best(rows: Tensor) -> Tensor:
        return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(k, dim=1).indices, True)

    wanted_rows, wanted_columns = best(near), best(near.T).T
    below = near - BELOW
    values = below.clone()
    pairs = (wanted_rows | wanted_columns).nonzero()
    at = tuple(pairs.T)
    values[at] = 20 * near[at] + torch.from_numpy(noise(pairs[:, 0].numpy(), pairs[:, 1].numpy()))
    image_to_text = torch.where(wanted_rows, values, below).numpy()
    text_to_image = torch.where(wanted_columns, values, below).T.numpy()
    ranks = Ranks(
        ranks_of(image_to_text, features.image_ids, features.text_ids),
        ranks_of(text_to_image, features.text_ids, features.image_ids),
    )
    return rank_metrics(ranks)


WAYS = {"blocks": blocks, "matrices": matrices}


def most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(pictures=5_000, texts=25_000, width=256, k=256).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--way", choices=WAYS, help="run one in this process")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    if options.way:
        features = split(options)
        before, begun, used = most_resident(), time.perf_counter(), time.process_time()
        metrics = WAYS[options.way](features, options.k)
        row = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - used}
        print(json.dumps({**row, "peak_bytes": most_resident() - before, "metrics": metrics}))
        return
    sizes = {name: getattr(options, name) for name in ("pictures", "texts", "width", "k")}
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    rows = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *words]
        rows[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        mib, used = rows[way]["peak_bytes"] / 2**20, rows[way]["processor_seconds"]
        print(f"{way:9} {mib:7.0f} MiB {rows[way]['seconds']:7.1f} s, {used:.1f} s of the processor", flush=True)
    if rows["blocks"]["metrics"] != rows["matrices"]["metrics"]:
        raise SystemExit("the metrics differ")
    if options.json:
        write_json(options.json, {**sizes, "threads": torch.get_num_threads(), "torch": torch.__version__, **rows})


if __name__ == "__main__":
    main()
