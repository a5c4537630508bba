"""What a user feels of a training step: pairs a second and peak memory, the whole step long.

    OMP_NUM_THREADS=2 python benchmarks/step.py --model blip --size 224 --layers 3 --batch 4 --out step.json
    python benchmarks/step.py --device cuda --preset gpu --seconds 180 --out step.json

A step is the forward and the backward pass of the whole objective, clipping and AdamW: of BLIP-base ITC with a queue
and a momentum encoder, and ITM with hard negatives; of a dual encoder of CLIP ViT-B/16's size the contrast over the
batch. Random weights of the published sizes. Each method runs twice: "ours" is the task of `aurora train` with
Aurora's attention, "usual" is `usual_step.py`, the code that was released with BLIP on transformers' own attention.

Precisions: ``float32``; ``autocast``, float32 weights that PyTorch casts to bfloat16; ``bf16``, the same over a model
that is held in bfloat16, with what peft adds in float32; ``pure-bf16``, every weight in bfloat16 and no autocast.

Variants take turns, beside LoRA r=64 with the usual code, of whose paired turns the ratios are medians. Peak memory
holds weights, gradients, the optimizer's state and all else that the step needs: of a GPU as its allocator counts it,
of a CPU what a process of its own adds to what it holds after its imports. ``--out`` is written anew after each
variant, with a table beside it (``.md``); a later call with the same file goes on where the first one ended.
"""

# ruff: noqa: E402 (imports count in the time that is spent)
from __future__ import annotations

import time

BEGUN = time.monotonic()

import argparse
import gc
import json
import math
from pathlib import Path

import torch
from step_bench import Bench, peak_here, quiet
from step_tables import Result
from step_variants import FUSION, METHODS, MODELS, PRECISIONS, QUEUE, SIDES, Variant


def preset(batch: int) -> list[list[Variant]]:
    """The groups for a GPU that is at hand for minutes: what tells most comes first."""
    ours, usual = ("Aurora", "ours"), ("Aurora", "usual")
    main = [ours, ("LoRA r=64", "ours"), usual, ("full", "usual"), (FUSION, "ours"), ("heads", "ours")]
    few = [ours, ("LoRA r=64", "ours"), ("full", "usual")]
    rest = [(m, side) for m in ("heads", "full", "LoRA r=16", "DoRA r=64", "VeRA r=256") for side in reversed(SIDES)]
    graphs = [ours, ("LoRA r=64", "ours"), ("LoRA r=64", "usual")]
    plan: list[tuple[str, int, str, list[tuple[str, str]], bool]] = [
        ("blip", 224, "bf16", main, False),
        ("blip", 384, "bf16", main, False),
        ("blip", 224, "bf16", graphs, True),
        ("blip", 384, "autocast", few, False),
        ("blip", 224, "autocast", few, False),
        ("blip", 384, "float32", few, False),
        ("blip", 224, "float32", few, False),
        ("clip", 224, "bf16", [*few, usual], False),
        ("clip", 224, "bf16", graphs, True),
        ("blip", 384, "bf16", graphs[:1], True),
        ("clip", 224, "autocast", few, False),
        ("clip", 224, "float32", few, False),
        ("blip", 224, "bf16", rest, False),
        ("blip", 384, "bf16", rest, False),
        ("clip", 224, "bf16", rest, False),
        ("blip", 224, "pure-bf16", few, False),
        ("blip", 384, "pure-bf16", few, False),
    ]
    return [
        [Variant(model, size, precision, method, side, batch, graph) for method, side in variants]
        for model, size, precision, variants, graph in plan
    ]


def chosen(options: argparse.Namespace) -> list[list[Variant]]:
    """The groups that the options name."""
    groups = []
    for model in options.model or MODELS:
        for size in options.size or ((224, 384) if model == "blip" else (224,)):
            for precision in options.precision or PRECISIONS[:3]:
                for graph in (False, True) if options.graphs else (False,):
                    groups.append(
                        [
                            Variant(model, size, precision, method, side, options.batch, graph)
                            for method in options.method or METHODS
                            for side in options.side or SIDES
                        ]
                    )
    return groups


def groups_of(options: argparse.Namespace) -> list[list[Variant]]:
    if options.one_of is not None:
        return [[Variant(**options.one_of)]]
    return preset(options.batch) if options.preset else chosen(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="both if not given")
    parser.add_argument("--size", action="append", type=int, help="pixels a side; 224 and, of BLIP, 384")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="the first three if not given")
    parser.add_argument("--method", action="append", choices=METHODS, help="all if not given")
    parser.add_argument("--side", action="append", choices=SIDES, help="both if not given")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs beside launches")
    parser.add_argument("--preset", choices=("gpu",), help="groups for a GPU in their order, in place of the above")
    for name, value in dict(batch=0, repeats=0, layers=12, width=768, queue=QUEUE, hold=0).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no variant is started later, imports included")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peak", dest="peak", action="store_false", help="leave out peak memory on a CPU")
    parser.add_argument("--out", type=Path, help="write the numbers here, and a table beside them")
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--one-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.here = options.one_of is not None
    on_gpu = options.device.startswith("cuda")
    options.batch = options.batch or (16 if on_gpu else 4)
    options.repeats = options.repeats or (3 if on_gpu else 5)
    options.hold = options.hold or (0 if on_gpu else 3)
    return options


def main() -> None:
    options = parsed()
    if options.peak_of is not None:
        with quiet():
            print(json.dumps(peak_here(Variant(**options.peak_of), options)))
        return
    if options.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(options.device).index or 0)
        warm = torch.randn(256, 256, device=options.device)
        (warm @ warm).sum().item()  # the workspace of products, which no variant is to pay for
    gc.freeze()  # what was imported need not be looked at
    result = Result(options)
    bench = Bench(options, result, BEGUN)
    with quiet():
        for group in groups_of(options):
            if bench.broken is None:
                bench.group(group)
    result.write()
    if options.out is None:
        print(result.markdown())
    print(f"{time.monotonic() - BEGUN:.0f} s", flush=True)
    if bench.broken is not None:
        raise SystemExit(f"the GPU computes no more: {bench.broken}; start anew with the same --out")


if __name__ == "__main__":
    main()
