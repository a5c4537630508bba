"""What `step.py` measures: a method on a model with our code or the usual one, as a step that can be called."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from step_measure import first_line, first_of, told, waits
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel
from usual_step import Stock, UsualBlip, UsualDual, stock_blip

from aurora_petl.backbones.blip.config import ORIGINAL_EPSILON
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.backbones.dual import KINDS, DualBackbone
from aurora_petl.baselines import apply_method, is_head
from aurora_petl.data.media import PictureFormat
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Aurora": ("aurora", {"r": 64}),
    "Aurora, ICE, GQT": ("aurora", {"r": 64, "context": "batch", "gate": "scale_shift"}),  # BLIP's, ours alone
    "heads": ("heads", {}),
    "LoRA r=64": ("lora", {"r": 64, "lora_alpha": 64}),
    "LoRA r=16": ("lora", {"r": 16, "lora_alpha": 16}),
    "DoRA r=64": ("dora", {"r": 64, "lora_alpha": 64}),
    "VeRA r=256": ("vera", {"r": 256}),
    "full": ("full", {}),
}
FUSION = "Aurora, ICE, GQT"
SIDES = ("ours", "usual")
MODELS = ("blip", "clip")
PRECISIONS = ("float32", "autocast", "bf16", "pure-bf16")
REFERENCE = ("LoRA r=64", "usual")
LONGEST = {"blip": 35, "clip": 77}  # tokens of a text
QUEUE = 57_600  # pairs, BLIP's
WORDS, SPREAD, SHORTEST = 13, 2.4, 8  # tokens of a caption: mean, standard deviation, least
RATE, DECAY, CLIP = 1e-5, 0.05, 1.0
WARM, REPEATED = 2, 2  # steps before the first turn, and steps of a turn on a GPU


@dataclass(frozen=True)
class Variant:
    """One row of the result."""

    model: str
    size: int  # pixels a side
    precision: str
    method: str
    side: str
    batch: int
    graph: bool = False  # whether the step is replayed as one CUDA graph

    @property
    def key(self) -> str:
        graph = ", CUDA graph" if self.graph else ""
        return f"{self.model} {self.size}, {self.precision}, {self.batch} pairs: {self.method}, {self.side}{graph}"

    @property
    def is_possible(self) -> bool:
        return self.method != FUSION or (self.side == "ours" and self.model == "blip")

    def reference(self) -> Variant:
        """What it is compared with: LoRA r=64 with the usual code, launched kernel by kernel."""
        method, side = REFERENCE
        return replace(self, method=method, side=side, graph=False)


class Unavailable(Exception):
    """A variant that cannot be measured, with the reason."""


# Models and batches


def fresh_model(variant: Variant, options: argparse.Namespace) -> Any:
    """transformers' model in float32 with random weights, without adapter."""
    width, layers = options.width, options.layers
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    shape |= dict(num_attention_heads=max(1, width // 64))
    vision = dict(shape, image_size=variant.size, patch_size=16)
    torch.manual_seed(0)
    with torch.device(options.device):
        if variant.model == "clip":
            narrow = max(64, width * 2 // 3)
            text = dict(shape, hidden_size=narrow, intermediate_size=4 * narrow, num_attention_heads=narrow // 64)
            return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=narrow))
        vision |= dict(layer_norm_eps=ORIGINAL_EPSILON, initializer_range=0.02)
        text = dict(shape, encoder_hidden_size=width, vocab_size=ENC + 1, initializer_range=0.02)
        return BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256))


def made_batch(variant: Variant, device: str) -> dict[str, Tensor]:
    """Pictures with captions of usual lengths: as wide as the longest, or as the model reads at most."""
    draw = torch.Generator().manual_seed(1)
    count, most = variant.batch, LONGEST[variant.model]
    lengths = torch.randn(count, generator=draw).mul(SPREAD).add(WORDS).round().long().clamp(SHORTEST, most)
    width = most if variant.side == "usual" else int(lengths.max())
    ids = torch.randint(1000, 30_000, (count, most), generator=draw)[:, :width]
    mask = (torch.arange(width) < lengths[:, None]).long()
    if variant.model == "clip":
        ids[:, 0], end = 49_406, 49_407
        ids = torch.where(torch.arange(width) < lengths[:, None] - 1, ids, end)
    else:
        ids[:, 0] = 101
        ids[torch.arange(count), lengths - 1] = 102
        ids = ids * mask
    pixels = torch.randn(count, 3, variant.size, variant.size, generator=draw)
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}
    return {name: value.to(device) for name, value in batch.items()}


def queue_of(rows: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Random features of earlier pictures and texts."""
    draw = torch.Generator().manual_seed(3)
    return tuple(  # type: ignore[return-value]
        torch.nn.functional.normalize(torch.randn(rows, width, generator=draw), dim=1).to(device) for _ in range(2)
    )


class Step:
    """A training step: call it. It returns the loss, which stays on the device.

    Args:
        variant: which.
        base: the model without adapter; it is copied.
    """

    def __init__(self, variant: Variant, base: Any, options: argparse.Namespace) -> None:
        self.variant, self.device = variant, options.device
        kind = torch.device(options.device).type
        autocast = variant.precision in ("autocast", "bf16")
        self._autocast = lambda: torch.autocast(kind, torch.bfloat16) if autocast else nullcontext()
        model = deepcopy(base)
        if variant.precision in ("bf16", "pure-bf16"):
            model.to(torch.bfloat16)
        method, settings = METHODS[variant.method]
        backbone = self._backbone(model)
        torch.manual_seed(0)
        apply_method(backbone, method, dict(settings))
        backbone.module.to(options.device)
        if variant.precision == "pure-bf16":
            backbone.module.to(torch.bfloat16)
        backbone.module.train()
        self.batch = made_batch(variant, options.device)
        rows = options.queue // variant.batch * variant.batch if variant.model == "blip" else 0
        self._loss = self._ours(backbone, rows) if variant.side == "ours" else self._usual(backbone, rows)
        own = [(name, weight) for name, weight in backbone.module.named_parameters() if weight.requires_grad]
        self.weights = [weight for _, weight in own]
        self.trainable = sum(weight.numel() for weight in self.weights)
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, weight in own:
            groups.setdefault((is_head(backbone, name), weight.dim() > 1), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [{"params": found, "weight_decay": DECAY * decays} for (_, decays), found in groups.items()],
            lr=RATE,
            fused=True,
        )

    def _backbone(self, model: Any) -> Any:
        if self.variant.model == "clip":
            if self.variant.side == "usual":
                return Stock(model, KINDS["clip"].heads)
            return DualBackbone(model, None, PictureFormat(self.variant.size), "random", KINDS["clip"])
        return stock_blip(model) if self.variant.side == "usual" else BlipBackbone(model, None, "random")

    def _usual(self, backbone: Stock, rows: int) -> Callable[[], Tensor]:
        if self.variant.model == "clip":
            loss: Any = UsualDual(backbone)
        else:
            loss = UsualBlip(backbone, *queue_of(rows, backbone.model.config.image_text_hidden_size, self.device))
        return lambda: loss(**self.batch)

    def _ours(self, backbone: Any, rows: int) -> Callable[[], Tensor]:
        task = Retrieval(backbone, RetrievalSettings(queue_size=rows)).to(self.device).train()
        if rows:
            task._contrast.fill(*queue_of(rows, backbone.feature_shape[-1], self.device), -100)
        return lambda: task(**self.batch)["loss"]

    def __call__(self) -> Tensor:
        with self._autocast():
            loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Replayed:
    """The same step, captured as one CUDA graph.

    Raises:
        Unavailable: if it cannot be captured, with the reason.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.trainable = step, step.trainable
        if places := waits(step):
            raise Unavailable(f"not captured: the step waits for the device {told(places)}")
        for group in step.optimizer.param_groups:
            group["capturable"] = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that are not captured
            for _ in range(WARM):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                self.loss = step()
        except Exception as error:  # that of the capture's end hides the one that broke it off
            raise Unavailable(f"not captured: {first_line(first_of(error))}") from error

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.loss
