"""Memory and time of the retrieval recipes on GPUs, estimated from counts made on a CPU.

    python benchmarks/estimate.py --json estimate.json

One training step of BLIP-base (random weights, Aurora R = 64 with context and gates, heads) is run at two small
batches. Its floating point operations (PyTorch's FlopCounterMode) and the bytes that its forward pass keeps for the
backward pass grow by a fixed amount a pair; bytes are halved, for bfloat16. Time is operations divided by a share of
the GPU's peak, which is an assumption, as are the sizes of the published training splits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measure import saved_bytes
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipConfig

from aurora_petl.backbones.blip import ENC, empty
from aurora_petl.baselines import apply_method
from aurora_petl.report import markdown_table, write_json
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings

PEAK, SHARE = 312e12, 0.35  # bfloat16 operations a second of an A100's data sheet, and what training reaches of it
# picture size, frames, pairs a GPU, training pairs, epochs: the released configurations and the published splits
RECIPES = {
    "coco": (384, 1, 16, 566_747, 6),
    "flickr30k": (384, 1, 16, 145_000, 4),
    "msrvtt": (224, 8, 8, 180_000, 5),
    "didemo": (224, 8, 8, 8_395, 5),
}
GIB = 2**30


def step(size: int, frames: int, batch: int) -> tuple[int, int, int]:
    """Operations, kept bytes (float32) and bytes of all weights (float32) of a training step."""
    shape = dict(initializer_range=0.02)
    text = dict(shape, vocab_size=ENC + 1, encoder_hidden_size=768, num_attention_heads=12)
    config = BlipConfig(text_config=text, vision_config=dict(shape, image_size=size), image_text_hidden_size=256)
    torch.manual_seed(0)
    backbone = empty(config, "random")
    apply_method(backbone, "aurora", {"r": 64, "context": "batch", "gate": "scale_shift"})
    task = Retrieval(backbone, RetrievalSettings(queue_size=0)).train()
    pixels = torch.randn(batch, frames, 3, size, size)
    ids = torch.randint(1000, ENC, (batch, 20))
    with FlopCounterMode(display=False) as counter:
        loss = task(pixels if frames > 1 else pixels[:, 0], ids, torch.ones_like(ids), torch.arange(batch))["loss"]
        kept = saved_bytes(loss, backbone.module)
        loss.backward()
    return counter.get_total_flops(), kept, sum(w.numel() * 4 for w in backbone.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    counted, rows, result = {}, [], {}
    for name, (size, frames, batch, pairs, epochs) in RECIPES.items():
        if (size, frames) not in counted:
            small, large = step(size, frames, 2), step(size, frames, 4)
            counted[size, frames] = [(b - a) / 2 for a, b in zip(small[:2], large[:2], strict=True)], small[2]
        (operations, kept), weights = counted[size, frames]
        memory = weights + batch * kept / 2  # float32 weights, bfloat16 activations
        hours = epochs * pairs * operations / (PEAK * SHARE) / 3600
        result[name] = {
            "operations_per_pair": operations,
            "kept_bytes_per_pair_bf16": kept / 2,
            "memory_bytes": memory,
            "hours_one_gpu": hours,
            "hours_eight_gpus": hours / 8,
        }
        rows.append(
            [
                name,
                f"{size} px" + (f", {frames} frames" if frames > 1 else ""),
                f"{batch}",
                f"{operations / 1e12:.2f}",
                f"{kept / 2 / 2**20:.0f}",
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
