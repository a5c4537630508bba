"""The cost of a training step at BLIP-base size: Aurora beside the frozen model and peft's methods.

    OMP_NUM_THREADS=2 python benchmarks/train_step.py --json step.json --picture step.png
    python benchmarks/train_step.py --device cuda --dtype bf16 --batch 64 --layers 12

A step is a forward and a backward pass of the layers of one part of the model: the vision tower at 224 and at 384 px,
and the text encoder that reads a picture's states (``fusion``). The floor is the frozen model with our attention
(SDPA), the gradient flowing to the input. The variants take turns, and the median is taken. Random weights. On a CPU
few layers are enough: all layers cost the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
from matplotlib.figure import Figure
from measure import Peak, formed_bytes, saved_bytes, seconds
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones.blip.attention import Meeting, use_sdpa
from aurora_petl.backbones.blip.model import ENC
from aurora_petl.files import write_json
from aurora_petl.report import table

FLOOR, USUAL = "floor", "LoRA r=64, stock"
TOKENS = {"vision-224": 197, "vision-384": 577, "fusion": 577}  # of a picture
VISION: dict[str, Any] = {"target_modules": ["qkv"]}
TEXT: dict[str, Any] = {"target_modules": ["query", "key", "value"]}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def adapters(part: str) -> dict[str, PeftConfig | str | None]:
    """Adapter of each variant; None trains nothing, "full" everything."""
    where = TEXT if part == "fusion" else VISION
    lora = {f"LoRA r={r}": peft.LoraConfig(r=r, lora_alpha=r, **where) for r in (64, 16)}
    vera = peft.VeraConfig(r=256, save_projection=False, **where)
    ours: dict[str, PeftConfig] = {"Aurora": AuroraConfig(r=64, init_weights=False, **where)}
    if part == "fusion":
        ours["Aurora, ICE, GQT"] = AuroraConfig(r=64, init_weights=False, context="batch", gate="scale_shift", **where)
    return {FLOOR: None, **ours, **lora, "VeRA r=256": vera, "full": "full"}


def made(part: str, adapter: PeftConfig | str | None, sdpa: bool, options: argparse.Namespace) -> nn.Module:
    """The part of a random BLIP, with its adapter."""
    width, layers = options.width, options.layers
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=max(1, width // 64))
    vision = dict(shape, num_hidden_layers=layers, initializer_range=0.02)
    text = dict(shape, encoder_hidden_size=width, num_hidden_layers=layers, vocab_size=ENC + 1, initializer_range=0.02)
    (text if part != "fusion" else vision).update(num_hidden_layers=1)
    torch.manual_seed(0)
    whole = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision))
    if sdpa:
        use_sdpa(whole)
    model: Any = whole.text_encoder if part == "fusion" else whole.vision_model
    model.requires_grad_(adapter == "full").to(options.device, DTYPES[options.dtype])
    return (get_peft_model(model, adapter) if isinstance(adapter, PeftConfig) else model).train()


def forward(part: str, model: Any, sdpa: bool, inputs: dict[str, Tensor], context: bool) -> Tensor:
    """The output that training goes on from: picture states, or the fused [CLS]."""
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if part != "fusion":
        return model.post_layernorm(model.encoder(inputs_embeds=inputs["states"]).last_hidden_state)
    more: dict[str, Any] = {"meeting": Meeting(first_only=True)} if sdpa else {}
    if context:
        more["context"] = inputs["context"]
    fused = model(
        input_ids=inputs["ids"],
        attention_mask=torch.ones_like(inputs["ids"]),
        encoder_hidden_states=inputs["states"],
        **more,
    )
    return fused.last_hidden_state[:, 0]


def made_inputs(part: str, options: argparse.Namespace) -> dict[str, Tensor]:
    torch.manual_seed(1)
    dtype, device = DTYPES[options.dtype], options.device

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    if part != "fusion":
        return {"states": draw(options.batch, TOKENS[part], options.width).requires_grad_()}
    return {
        "ids": torch.randint(1000, ENC, (options.batch, 16), device=device),
        "states": draw(options.batch, TOKENS[part], options.width).requires_grad_(),
        "context": draw(options.batch, options.width),
    }


def _backward(step: Callable[[], Tensor]) -> None:
    step().float().square().mean().backward()


def measure(part: str, options: argparse.Namespace) -> dict[str, dict]:
    """Figures of each variant: seconds, ratio to the floor and to what is usual, bytes, weights."""
    inputs = made_inputs(part, options)
    steps: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {}
    for name, adapter in adapters(part).items():
        for sdpa in (True, False):
            if not sdpa and name.startswith("Aurora"):
                continue
            model = made(part, adapter, sdpa, options)
            run = partial(forward, part, model, sdpa, inputs, "ICE" in name)
            steps[name if sdpa else f"{name}, stock"] = run, model
    rows: dict[str, dict] = {}
    for name, (step, model) in steps.items():
        with Peak(options.device) as peak:
            step().float().square().mean().backward()  # warms up
        rows[name] = {
            "all_seconds": [],
            "saved_bytes": saved_bytes(step(), model),
            "formed_bytes": formed_bytes(model),
            "peak_bytes": peak.bytes,
            "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        }
    for _ in range(options.repeats):
        for name, (step, model) in steps.items():
            model.zero_grad()
            rows[name]["all_seconds"].append(seconds(partial(_backward, step), options.device))
    for row in rows.values():
        row["seconds"] = median(row["all_seconds"])
        for key, other in (("ratio", FLOOR), ("usual_ratio", USUAL)):  # of paired turns: what slows one slows the other
            pairs = zip(row["all_seconds"], rows[other]["all_seconds"], strict=True)
            row[key] = median(mine / theirs for mine, theirs in pairs)
        row["saved_ratio"] = row["saved_bytes"] / rows[FLOOR]["saved_bytes"]
    return rows


def show(part: str, rows: dict[str, dict]) -> None:
    """Print the figures as a table."""
    body = [
        [
            name,
            f"{row['seconds']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['usual_ratio']:.3f}",
            f"{row['saved_bytes'] / 2**20:.1f}",
            f"{row['saved_ratio']:.3f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['trainable']:,}",
        ]
        for name, row in rows.items()
    ]
    head = [part, "seconds", "of floor", "of usual", "saved MiB", "of floor", "peak MiB", "trainable"]
    print(f"\n{table(head, body)}\nusual: {USUAL}", flush=True)


def draw(result: dict[str, dict[str, dict]], path: Path) -> None:
    """Bars of step time and saved bytes against the floor, a column for each part."""
    figure = Figure(figsize=(4.6 * len(result), 7), layout="constrained")
    axes = figure.subplots(2, len(result), squeeze=False)
    for column, (part, rows) in enumerate(result.items()):
        names = list(rows)[::-1]
        colours = ["tab:orange" if n.startswith("Aurora") else "0.4" if n == FLOOR else "tab:blue" for n in names]
        for row, (key, label) in enumerate((("ratio", "time"), ("saved_ratio", "bytes kept"))):
            place = axes[row][column]
            drawn = place.barh(names, [rows[name][key] for name in names], color=colours)
            place.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
            place.axvline(1, color="0.4", linestyle=":")
            place.margins(x=0.12)
            place.set_title(f"{part}: {label}, of the floor", fontsize=9)
            place.tick_params(labelsize=8, labelleft=column == 0 or set(names) != set(next(iter(result.values()))))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = tuple(TOKENS)
    for name, value in dict(width=768, layers=3, batch=4, repeats=7).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--part", action="append", choices=parts, help="all if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--picture", type=Path, help="draw a bar chart of seconds and saved bytes here")
    options = parser.parse_args()
    result = {}
    for part in options.part or parts:
        result[part] = measure(part, options)
        show(part, result[part])
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "picture", "part")}
        write_json(
            options.json, {**settings, "threads": torch.get_num_threads(), "torch": torch.__version__, "parts": result}
        )
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
