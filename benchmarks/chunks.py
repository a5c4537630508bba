"""Memory of a training step against its batch: contrast by chunks (`task.chunk_size`) beside the whole batch.

    OMP_NUM_THREADS=2 python benchmarks/chunks.py --json chunks.json

Random weights of the width of CLIP ViT-B/16 and of BLIP-base, few layers, Aurora's adapter. The step is the loss and
its backward pass: contrast for CLIP, contrast with the momentum encoder and matching for BLIP. Bytes are the most that
tensors made in a step hold at once: weights and pictures, which were there before, do not count, copies of weights do.
Seconds are of a step that nobody watches.
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BlipConfig, CLIPConfig

from aurora_petl.backbones import dual
from aurora_petl.backbones.blip import model as blip
from aurora_petl.baselines import apply_method
from aurora_petl.files import write_json
from aurora_petl.report import table
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings

TOKENS = 16  # of a text
SIZES = (0, 4)


def made(kind: str, options: argparse.Namespace, chunk_size: int) -> Retrieval:
    """A task of random weights."""
    width, layers = options.width, options.layers
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    shape |= dict(num_attention_heads=width // 64)
    vision = shape | dict(image_size=options.size, patch_size=16)
    torch.manual_seed(0)
    backbone: Any
    if kind == "clip":
        text = shape | dict(vocab_size=1000, eos_token_id=999, bos_token_id=998)
        backbone = dual.empty(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256), kind)
        extra: dict[str, Any] = {}
    else:
        text = shape | dict(vocab_size=30_524, encoder_hidden_size=width, pad_token_id=0, bos_token_id=1)
        text |= dict(sep_token_id=2, eos_token_id=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        vision |= dict(initializer_range=0.02)
        config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256, projection_dim=256)
        backbone = blip.empty(config, kind)
        extra = {"context": "batch", "gate": "scale_shift"}
    apply_method(backbone, "aurora", {"r": 64, "init_weights": False, "scale": 0.1, **extra})
    queue = 1024 if kind == "blip" else None
    return Retrieval(backbone, RetrievalSettings(chunk_size=chunk_size, queue_size=queue)).train()


def batch_of(count: int, size: int) -> dict[str, torch.Tensor]:
    """So many random pairs."""
    torch.manual_seed(1)
    ids = torch.randint(3, 900, (count, TOKENS))
    ids[:, -1] = 999
    pixels = torch.randn(count, 3, size, size)
    return {
        "pixel_values": pixels,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "ids": torch.arange(count),
    }


class Alive(TorchDispatchMode):
    """Bytes of tensors that operations within it have made and that are alive, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(storage) for storage in _storages((args, kwargs))}
        result = operation(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in before and id(storage) not in self._known:
                self.bytes += storage.nbytes()
                self._known[id(storage)] = weakref.ref(storage, partial(self._gone, id(storage), storage.nbytes()))
        self.most = max(self.most, self.bytes)
        return result

    def _gone(self, number: int, count: int, _: Any) -> None:
        self.bytes -= count
        del self._known[number]


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def peak(step: Callable[[], None]) -> int:
    """Most bytes of what a call has made and holds at once."""
    with Alive() as alive:
        step()
    return alive.most


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each model, chunk size and batch."""
    rows = []
    for kind in options.models:
        for chunk_size in SIZES:
            task = made(kind, options, chunk_size)
            for count in options.batches:
                batch = batch_of(count, options.size)

                def step(task: Retrieval = task, batch: dict[str, torch.Tensor] = batch) -> None:
                    task.zero_grad(set_to_none=True)
                    task(**batch)["loss"].backward()

                step()
                begun = time.perf_counter()
                step()
                seconds = time.perf_counter() - begun
                rows.append(
                    {"model": kind, "chunk_size": chunk_size, "batch": count, "MiB": peak(step) / 2**20, "s": seconds}
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["clip", "blip"], choices=["clip", "blip"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options)
    shown = [
        [
            row["model"],
            str(row["chunk_size"] or "whole batch"),
            str(row["batch"]),
            f"{row['MiB']:.0f}",
            f"{row['s']:.1f}",
        ]
        for row in rows
    ]
    print(table(["model", "chunk", "pairs", "peak MiB", "seconds"], shown))
    if options.json:
        write_json(options.json, {"torch": torch.__version__, "layers": options.layers, "rows": rows})


if __name__ == "__main__":
    main()
