"""How many kernels a step launches: Aurora beside the frozen model, LoRA and full fine-tuning.

    python benchmarks/count_kernels.py

A GPU waits for launches where batches are small, and what launches is an operation that PyTorch dispatches, views and
allocations aside. They are counted in a forward and a backward pass after a change of the trained weights, on a CPU,
but as on a GPU: without what goes round PyTorch's attention in bfloat16 on a CPU. The number does not depend on the
width. The floor is the frozen model, the gradient flowing to the input. BLIP's vision tower and the text encoder that
reads a picture are those of `train_step.py`; CLIP's vision tower, with transformers' own attention, goes through plain
peft.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import torch
import train_step
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from aurora_petl.adapter import AuroraConfig, frozen
from aurora_petl.backbones import sharing
from aurora_petl.files import write_json
from aurora_petl.report import table

NO_KERNELS = {
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "unflatten"),
    *("select", "slice", "split", "split_with_sizes", "chunk", "unbind", "as_strided", "detach", "alias"),
    *("empty", "new_empty", "empty_like", "empty_strided"),
}
DTYPES = ("fp32", "autocast", "bf16")
PARTS = ("vision", "fusion", "clip")
Variant = tuple[nn.Module, Callable[[], Tensor]]


class Kernels(TorchDispatchMode):
    """Counts what is dispatched within it and launches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation._schema.name.split("::")[1]
        if name not in NO_KERNELS:
            self.counts[name] += 1
        return operation(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Compute in bfloat16 here as it is done on a GPU."""
    with patch.object(sharing, "is_bfloat16_on_cpu", _no), patch.object(frozen, "is_bfloat16_on_cpu", _no):
        yield


def _no(_: Tensor) -> bool:
    return False


def kernels(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Of a forward and backward pass, after one that warms up and a change of what is trained."""
    run().backward()
    model.zero_grad()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.mul_(1.001)
    with Kernels() as counted:
        run().backward()
    return sum(counted.counts.values())


def variants(part: str, dtype: str, layers: int, heads: int) -> dict[str, Callable[[], Variant]]:
    """What is compared: makes a model and a forward pass to a loss."""
    if part == "clip":
        targets: dict[str, Any] = {"target_modules": ["q_proj", "k_proj", "v_proj"]}
        ours = AuroraConfig(r=64, init_weights=False, **targets)
        adapters: dict[str, Any] = {"floor": None, "Aurora": ours, "LoRA r=64": peft.LoraConfig(r=64, **targets)}
        return {name: partial(_clip, a, dtype, layers, heads) for name, a in {**adapters, "full": "full"}.items()}
    found = train_step.adapters("vision-224" if part == "vision" else part)
    wanted = {
        name: adapter for name, adapter in found.items() if name in ("floor", "LoRA r=64", "full") or "Aurora" in name
    }
    return {name: partial(_blip, part, name, a, dtype, layers, heads) for name, a in wanted.items()}


def _blip(part: str, name: str, adapter: PeftConfig | str | None, dtype: str, layers: int, heads: int) -> Variant:
    full_part = "vision-224" if part == "vision" else part
    options = argparse.Namespace(width=64 * heads, layers=layers, batch=2, device="cpu")
    options.dtype = "bf16" if dtype == "bf16" else "fp32"
    model, inputs = train_step.made(full_part, adapter, True, options), train_step.made_inputs(full_part, options)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return train_step.forward(full_part, model, True, inputs, "ICE" in name).float().square().mean()

    return model, run


def _clip(adapter: PeftConfig | str | None, dtype: str, layers: int, heads: int) -> Variant:
    width = 64 * heads
    shape: dict[str, Any] = dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
    )
    torch.manual_seed(0)
    model: Any = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=64, patch_size=16))
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model.requires_grad_(adapter == "full").to(kind)
    if isinstance(adapter, PeftConfig):
        model = get_peft_model(model, adapter)
    pixels = torch.randn(2, 3, 64, 64, dtype=kind, requires_grad=True)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return model(pixel_values=pixels).last_hidden_state.float().square().mean()

    return model.train(), run


def count(part: str, layers: int = 12, heads: int = 2) -> dict[str, dict[str, int]]:
    """Kernels of each variant by dtype."""
    found: dict[str, dict[str, int]] = {}
    for dtype in DTYPES:
        for name, make in variants(part, dtype, layers, heads).items():
            with as_on_a_gpu():
                found.setdefault(name, {})[dtype] = kernels(*make())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="all if not given")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    result = {}
    for part in options.part or PARTS:
        rows = result[part] = count(part, options.layers)
        floor = rows["floor"]
        body = [
            [name, *(f"{row[dtype]:,} = {row[dtype] / floor[dtype]:.2f} x" for dtype in DTYPES)]
            for name, row in rows.items()
        ]
        print(f"\n{table([part, *DTYPES], body)}", flush=True)
    if options.json:
        write_json(options.json, {"layers": options.layers, "torch": torch.__version__, "parts": result})


if __name__ == "__main__":
    main()
