"""Memory and time of the benchmarks' recipes on GPUs, estimated from counts made on a CPU.

    python benchmarks/estimate.py --json estimate.json

One training step of BLIP-base (random weights, Aurora R = 64 with context and gates, heads) is run at two small
batches. Its floating point operations (PyTorch's FlopCounterMode) and the bytes that its forward pass keeps for the
backward pass grow by a fixed amount a pair. It runs in float64, which goes the way of bfloat16 through the layers, as
float32 does not (`backbones/blip/crossing.py`), and a quarter of the bytes counts. Time is operations divided by a
share of the GPU's peak, which is an assumption, as are texts of 20 tokens and, for VQAv2, four answers of 4 tokens a
question.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from measure import saved_bytes
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipConfig

from aurora_petl.backbones.blip.model import ENC, empty
from aurora_petl.baselines import apply_method
from aurora_petl.files import write_json
from aurora_petl.recipe import Recipe, load_recipe
from aurora_petl.report import markdown_table
from aurora_petl.tasks.base import Task
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings, VQASettings
from aurora_petl.tasks.vqa import VQA

PEAK, SHARE = 312e12, 0.35  # bfloat16 operations a second of an A100's data sheet, and what training reaches of it
PAIRS = {  # of the published training splits: captions, or questions
    "coco": 566_747,
    "flickr30k": 145_000,
    "msrvtt": 180_000,
    "didemo": 8_395,
    "vqav2": 658_111,  # training and validation split
    "msrvtt-qa": 158_581,
}
ANSWERS = {"vqav2": 4}  # distinct ones of a question's ten
GIB = 2**30


def step(recipe: Recipe, answers: int, batch: int) -> tuple[int, int, int]:
    """Operations, kept bytes (bfloat16) and bytes of all weights (float32) of a training step."""
    size, frames, kind = recipe.image_size, recipe.task.frames, recipe.task.name
    shape = dict(initializer_range=0.02)
    text = dict(shape, vocab_size=ENC + 1, encoder_hidden_size=768, num_attention_heads=12)
    config = BlipConfig(text_config=text, vision_config=dict(shape, image_size=size), image_text_hidden_size=256)
    torch.manual_seed(0)
    backbone = empty(config, "random", kind)
    apply_method(backbone, recipe.method, recipe.method_options)
    backbone.module.double()
    ids = torch.randint(1000, ENC, (batch, 20))
    pixels = torch.randn(batch, *([frames] if frames else []), 3, size, size, dtype=torch.float64)
    if kind == "vqa":
        assert isinstance(recipe.task, VQASettings)
        task: Task = VQA(backbone, recipe.task)
        which = torch.arange(batch).repeat_interleave(answers)
        written = torch.randint(1000, ENC, (len(which), 4))
        inputs = [ids, torch.ones_like(ids), written, torch.ones_like(written), which, torch.ones(len(which))]
    else:
        assert isinstance(recipe.task, RetrievalSettings)
        task = Retrieval(backbone, replace(recipe.task, queue_size=0, momentum_init="copy"))
        inputs = [ids, torch.ones_like(ids), torch.arange(batch)]
    with FlopCounterMode(display=False) as counter:
        loss = task.train()(pixels, *inputs)["loss"]
        kept = saved_bytes(loss, backbone.module) // 4
        loss.backward()
    return counter.get_total_flops(), kept, sum(w.numel() * 4 for w in backbone.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    counted, rows, result = {}, [], {}
    for name, pairs in PAIRS.items():
        recipe = load_recipe(name)
        size, frames, batch = recipe.image_size, recipe.task.frames, recipe.train.batch_size
        alike = recipe.task.name, size, frames
        if alike not in counted:
            small, large = (step(recipe, ANSWERS.get(name, 1), batch) for batch in (2, 4))
            counted[alike] = [(b - a) / 2 for a, b in zip(small[:2], large[:2], strict=True)], small[2]
        (operations, kept), weights = counted[alike]
        memory = weights + batch * kept  # float32 weights, bfloat16 activations
        hours = recipe.train.epochs * pairs * operations / (PEAK * SHARE) / 3600
        result[name] = {
            "operations_per_pair": operations,
            "kept_bytes_per_pair_bf16": kept,
            "memory_bytes": memory,
            "hours_one_gpu": hours,
            "hours_eight_gpus": hours / 8,
        }
        rows.append(
            [
                name,
                f"{size} px" + (f", {frames} frames" if frames else ""),
                f"{batch}",
                f"{operations / 1e12:.2f}",
                f"{kept / 2**20:.0f}",
                f"{memory / GIB:.1f}",
                f"{hours:.1f}",
                f"{hours / 8:.1f}",
            ]
        )
        print(name, rows[-1], flush=True)
    head = ["recipe", "size", "pairs a GPU", "TFLOP a pair", "MiB kept a pair", "GiB a GPU", "h on one", "h on eight"]
    print(markdown_table(head, rows))
    if options.json:
        write_json(options.json, {"peak": PEAK, "share": SHARE, "recipes": result})


if __name__ == "__main__":
    main()
