"""The cost of a training step by tuning method, at BLIP-base size unless told otherwise, with random weights.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py --json train-step.json --picture train-step.png
    python benchmarks/train_step.py --device cuda --dtype bf16

Three encoders: the vision tower at 224 and at 384 px, and the text encoder that reads picture states (`fusion`). A step
is a forward and a backward pass down to the encoder's input, without the optimiser. Every method tunes query, key and
value; it runs on transformers' own attention ("stock") or on ours (`backbones/blip_attention.py`). Ratios are to the
floor: the frozen encoder on our attention. The variants take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from measure import peak_bytes, saved_bytes, seconds
from peft import LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones.blip_attention import use_sdpa
from aurora_petl.report import table, write_json

ENCODERS = {"vision-224": 224, "vision-384": 384, "fusion": 384}  # px of the pictures
PATCH = 16
FLOOR = "floor"

Step = Callable[[], None]


def made(options: argparse.Namespace, encoder: str) -> BlipForImageTextRetrieval:
    """A model on the device; of the tower that takes no part, one layer."""
    fusion = encoder == "fusion"
    shape = dict(hidden_size=options.width, intermediate_size=4 * options.width, initializer_range=0.02)
    shape |= dict(num_attention_heads=max(1, options.width // 64))
    text = dict(shape, encoder_hidden_size=options.width, num_hidden_layers=options.layers if fusion else 1)
    vision = dict(shape, num_hidden_layers=1 if fusion else options.layers, image_size=ENCODERS[encoder])
    torch.manual_seed(0)
    with torch.device(options.device):
        model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision))
    return model.train()


def variants(rank: int, encoder: str) -> dict[str, tuple[PeftConfig | None, bool]]:
    """By name: the adapter, or None, and whether attention is ours. "full" tunes every weight."""
    targets = ["query", "key", "value"] if encoder == "fusion" else ["qkv"]
    aurora = partial(AuroraConfig, r=rank, target_modules=targets, init_weights=False)
    found: dict[str, tuple[PeftConfig | None, bool]] = {FLOOR: (None, True), f"Aurora r={rank}": (aurora(), True)}
    if encoder == "fusion":
        found[f"Aurora r={rank}, ICE, GQT"] = aurora(context="batch", gate="scale_shift"), True
    others: dict[str, PeftConfig | None] = {
        f"LoRA r={r}": LoraConfig(r=r, target_modules=targets, init_lora_weights=False)
        for r in dict.fromkeys((rank, max(1, rank // 4)))
    }
    others[f"VeRA r={4 * rank}"] = VeraConfig(r=4 * rank, target_modules=targets, save_projection=False)
    others["full"] = None
    for name, config in others.items():
        found |= {name: (config, True), f"{name}, stock": (config, False)}
    return found | {f"{FLOOR}, stock": (None, False)}


class Variant:
    """One method on one encoder."""

    def __init__(self, options: argparse.Namespace, encoder: str, name: str, config: PeftConfig | None, ours: bool):
        self.model = made(options, encoder)
        self.device, self.bf16 = torch.device(options.device), options.dtype == "bf16"
        self.model.requires_grad_(name.startswith("full"))
        if ours and not use_sdpa(self.model):
            raise SystemExit("our attention does not fit this transformers")
        self.tuned = self.model if config is None else get_peft_model(self.model, config)  # has what layers share
        torch.manual_seed(1)
        picture = (options.batch, (ENCODERS[encoder] // PATCH) ** 2 + 1, options.width)
        self.input = torch.randn(picture, device=self.device, requires_grad=True)
        more: dict[str, Any] = {}
        if getattr(config, "context", None):
            more["context"] = torch.randn(options.batch, options.width, device=self.device)
        words = torch.randint(1000, 30_000, (options.batch, options.tokens), device=self.device)
        self.run = (
            partial(self.model.text_encoder, input_ids=words, attention_mask=torch.ones_like(words), **more)
            if encoder == "fusion"
            else self.model.vision_model.encoder
        )
        self.key = "encoder_hidden_states" if encoder == "fusion" else "inputs_embeds"
        self.gradient = torch.randn(self.forward().shape, device=self.device)

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.run(**{self.key: self.input}).last_hidden_state

    def step(self) -> None:
        output = self.forward()
        output.backward(self.gradient.to(output.dtype))

    def forget(self) -> None:
        self.tuned.zero_grad()
        self.input.grad = None

    def trainable(self) -> int:
        return sum(weight.numel() for weight in self.tuned.parameters() if weight.requires_grad)


def measured(options: argparse.Namespace, encoder: str) -> dict[str, dict[str, Any]]:
    """The numbers of every variant on one encoder, by name."""
    tried: dict[str, Variant] = {}
    frozen: dict[str, Tensor] = {}
    for name, (config, ours) in variants(options.rank, encoder).items():
        variant = tried[name] = Variant(options, encoder, name, config, ours)
        for key, weight in variant.model.named_parameters():  # the frozen weights of all are one and the same
            key = key.replace(".base_layer", "")
            if "lora" not in key and "vera" not in key and "aurora" not in key:
                weight.data = frozen.setdefault(key, weight.data)
    stock, ours = (tried[name].forward().detach() for name in (f"{FLOOR}, stock", FLOOR))
    if float((stock - ours).norm() / stock.norm()) > (0.02 if options.dtype == "bf16" else 1e-4):
        raise SystemExit(f"{encoder}: our attention differs from transformers'")
    found: dict[str, dict[str, Any]] = {name: {"all": []} for name in tried}
    for name, variant in tried.items():
        found[name]["trainable"] = variant.trainable()
        found[name]["saved_bytes"] = saved_bytes(variant.forward, variant.tuned)
        found[name]["peak_bytes"] = peak_bytes(variant.step, variant.device)
        variant.forget()
    for _ in range(options.repeats):
        for name, variant in tried.items():
            found[name]["all"].append(seconds(variant.step, variant.device))
            variant.forget()
    floor = median(found[FLOOR]["all"])
    for row in found.values():
        row["seconds"] = median(row["all"])
        row["ratio"] = row["seconds"] / floor
        row["saved_ratio"] = row["saved_bytes"] / found[FLOOR]["saved_bytes"]
    return found


def shown(found: dict[str, dict[str, Any]]) -> str:
    """The numbers as a table, the cheapest first."""
    rows = [
        [
            name,
            f"{row['seconds']:.4g}",
            f"{row['ratio']:.3f}",
            f"{row['saved_bytes'] / 2**20:.1f}",
            f"{row['saved_ratio']:.3f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['trainable']:,}",
        ]
        for name, row in sorted(found.items(), key=lambda item: item[1]["seconds"])
    ]
    return table(["", "seconds", "ratio", "saved MiB", "ratio", "peak MiB", "trainable"], rows)


def draw(result: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Bars of time and of saved activations, a row of panels an encoder."""
    sheet = Figure(figsize=(11, 4 * len(result)), layout="constrained")
    for panels, (encoder, found) in zip(sheet.subplots(len(result), 2, squeeze=False), result.items(), strict=True):
        names = sorted(found, key=lambda name: -found[name]["ratio"])
        colours = ["tab:blue" if "Aurora" in n else "tab:grey" if FLOOR in n else "tab:orange" for n in names]
        for axes, key, title in zip(panels, ("ratio", "saved_ratio"), ("time", "saved activations"), strict=True):
            bars = axes.barh(names, [found[name][key] for name in names], color=colours)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.margins(x=0.1)
            axes.set_title(f"{encoder}: {title} of a step, floor = 1", loc="left", fontsize=10)
    partial_path = path.with_name(path.name + ".part")
    sheet.savefig(partial_path, format="png", dpi=120)
    os.replace(partial_path, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(width=768, layers=12, rank=64, batch=4, tokens=35, repeats=5)
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--only", choices=ENCODERS, help="this encoder alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: by autocast")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--picture", type=Path, help="draw them here, a PNG")
    options = parser.parse_args(arguments)

    result = {}
    for encoder in [options.only] if options.only else ENCODERS:
        result[encoder] = measured(options, encoder)
        print(f"{encoder}\n{shown(result[encoder])}\n", flush=True)
    if options.json:
        machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
        used = {name: getattr(options, name) for name in (*sizes, "dtype")}
        used |= {"device": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(options.json, {**used, "encoders": result})
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
