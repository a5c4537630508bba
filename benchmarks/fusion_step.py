"""The matching step of training, at BLIP-base size unless told otherwise: transformers' attention with a copy of the
picture for every text against ours with shared pictures. Random weights; Aurora adapts the text encoder.

    OMP_NUM_THREADS=1 python benchmarks/fusion_step.py --json fusion.json

A step is the ITM part of `tasks.retrieval.Retrieval`: every picture with its text, with a hard negative text, and as
the hard negative of one other text, forward and backward, down to the picture states; with ``--uneven`` the negative
pictures are drawn at random, so that some have more texts than others. The two take turns, and it stops if their losses
or gradients differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measure import saved_bytes, seconds
from peft import get_peft_model
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones.base import Texts
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.files import write_json


def made(width: int, layers: int, rank: int) -> BlipForImageTextRetrieval:
    """A model with an adapter that is not at its start; of the vision tower, which takes no part, one layer."""
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64)
    text = dict(shape, encoder_hidden_size=width, num_hidden_layers=layers, vocab_size=ENC + 1, initializer_range=0.02)
    vision = dict(shape, num_hidden_layers=1, initializer_range=0.02)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision))
    get_peft_model(model, AuroraConfig(r=rank, target_modules=["query", "key", "value"], init_weights=False))
    return model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(width=768, layers=12, rank=64, batch=4, tokens=16, picture=577, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--uneven", action="store_true", help="draw the negative pictures at random")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()

    stock, model = (made(options.width, options.layers, options.rank) for _ in range(2))
    ours = BlipBackbone(model, None, "random")
    own = torch.arange(options.batch)
    negative_text, drawn = ((own + torch.randint(1, options.batch, own.shape)) % len(own) for _ in range(2))
    which = torch.cat([own, own, drawn if options.uneven else own.roll(1)])
    ids = torch.randint(1000, ENC, (options.batch, options.tokens))[torch.cat([own, negative_text, own])]
    ids[:, 0] = ENC
    mask = torch.ones_like(ids)
    labels = (torch.arange(len(ids)) < options.batch).long()
    states = torch.randn(options.batch, options.picture, options.width, requires_grad=True)

    def repeated() -> Tensor:
        fused = stock.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states[which])
        return F.cross_entropy(stock.itm_head(fused.last_hidden_state[:, 0]), labels)

    def shared() -> Tensor:
        return F.cross_entropy(ours.match(Texts(ids, mask), states, which), labels)

    sides = {"transformers": (repeated, stock), "ours": (shared, model)}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        losses, gradients = {}, {}
        for name, (step, module) in sides.items():
            module.zero_grad()
            states.grad = None
            found: list[Tensor] = []

            def forward_backward(step=step, found=found) -> None:
                found.append(step())
                found[0].backward()

            taken[name].append(seconds(forward_backward, "cpu"))
            trained = [states, *(weight for weight in module.parameters() if weight.requires_grad)]
            losses[name] = found[0].item()
            gradients[name] = torch.cat([weight.grad.flatten() for weight in trained if weight.grad is not None])
        difference = float((gradients["ours"] - gradients["transformers"]).norm() / gradients["transformers"].norm())
        if abs(losses["ours"] - losses["transformers"]) > 1e-5 or difference > 1e-4:
            raise SystemExit(f"the two differ: losses {losses}, gradients by {difference:.1e}")
    result: dict[str, dict[str, Any]] = {
        name: {"seconds": median(times), "all": times, "saved_bytes": saved_bytes(sides[name][0](), sides[name][1])}
        for name, times in taken.items()
    }
    theirs, mine = result["transformers"], result["ours"]
    for name, row in result.items():
        print(f"{name:12} {row['seconds']:8.3f} s  {row['saved_bytes'] / 2**20:8.1f} MiB saved for the backward pass")
    faster, memory = theirs["seconds"] / mine["seconds"], mine["saved_bytes"] / theirs["saved_bytes"]
    off, threads = abs(losses["ours"] - losses["transformers"]), torch.get_num_threads()
    print(f"{faster:.2f} times as fast with {memory:.0%} of the memory, {threads} threads")
    print(f"losses differ by {off:.1e}, gradients by {difference:.1e} of their length")
    if options.json:
        sizes = {name: value for name, value in vars(options).items() if name != "json"}
        figures = {"faster": faster, "loss_difference": off, "gradient_difference": difference}
        write_json(options.json, {**sizes, "threads": threads, "torch": torch.__version__, **figures, **result})


if __name__ == "__main__":
    main()
