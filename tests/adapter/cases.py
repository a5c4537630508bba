"""Small models of many shapes, each with configurations, inputs and a head, for `test_common_cases.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from aurora_petl.adapter import AuroraConfig

from .tiny import SPLIT, TARGETS, Net, blip_config

Inputs = dict[str, torch.Tensor]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1, self.head = nn.Linear(10, 20), nn.Linear(20, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.lin1(torch.tanh(self.lin0(x)))))


class Words(nn.Module):
    """An embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.linear(self.embedding(ids))))


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.linear(torch.tanh(self.linear(x)))))


class Nested(nn.Module):
    """Layers in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)}) for _ in "ab"])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.head(x)


class Patches(nn.Module):
    """A picture cut into patches by a convolution, and convolutions over these with the padding of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.around = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False)
        self.line = nn.Conv1d(8, 6, 3, padding="same", dilation=2)
        self.head = nn.Linear(6, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.patch(pixels))
        x = torch.tanh(self.line((x + self.around(x)).flatten(2)))
        return self.head(x.mT)


class Attended(nn.Module):
    """A block of PyTorch's own attention, as in open_clip's models, whose MLP is a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.norm(x)
        x = x + self.attn(q, q, q, need_weights=False)[0]
        return self.head(x + torch.tanh(self.mlp(x)))


def gpt2() -> GPT2LMHeadModel:
    sizes = dict(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    dropouts = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, pad_token_id=0, tie_word_embeddings=False))


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def t5() -> T5ForConditionalGeneration:
    sizes = dict(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4)
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0))


def clip() -> CLIPModel:
    sizes = dict(intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, hidden_size=16)
    text = dict(vocab_size=50, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    pictures = dict(image_size=16, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=sizes | text, vision_config=sizes | pictures | {"hidden_size": 24}))


def blip() -> BlipForImageTextRetrieval:
    return BlipForImageTextRetrieval(blip_config())


def reals(width: int) -> Callable[[], Inputs]:
    return lambda: {"x": torch.randn(4, 5, width, generator=torch.Generator().manual_seed(5))}


def pictures() -> Inputs:
    return {"pixels": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))}


def ids(*names: str) -> Callable[[], Inputs]:
    draw = torch.Generator().manual_seed(5)
    return lambda: {name: torch.randint(3, 50, (4, 6), generator=draw.manual_seed(5)) for name in names}


def pairs() -> Inputs:
    draw = torch.Generator().manual_seed(5)
    return {"pixel_values": torch.randn(4, 3, 16, 16, generator=draw), "input_ids": ids("x")()["x"]}


@dataclass(frozen=True)
class Case:
    """A model, what to adapt of it and how, inputs of a batch of 4, and a module to train in full."""

    make: Callable[[], nn.Module]
    targets: list[str] | str | None
    inputs: Callable[[], Inputs]
    head: str
    fields: dict[str, Any] = field(default_factory=dict)
    output: str | None = None  # the attribute of what the model returns
    exact: bool = True  # whether PyTorch computes the base to the bit alike with gradients and without

    def base(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval().requires_grad_(False)

    def config(self, **fields: Any) -> AuroraConfig:
        """Drawn so that no update is 0, unless `fields` says otherwise."""
        given = {"r": 4, "target_modules": self.targets, "init_weights": False, **self.fields, **fields}
        return AuroraConfig(**given)

    def same(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        return torch.equal(x, y) if self.exact else torch.allclose(x, y, atol=1e-6, rtol=1e-5)

    def run(self, model: nn.Module, **more: Any) -> torch.Tensor:
        weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        inputs = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in self.inputs().items()
        }
        if isinstance(self.make, type):  # ours take one argument by position
            y = model(*inputs.values(), **more)
        else:
            y = model(**inputs, **more)
        return y if self.output is None else getattr(y, self.output)


_NET = (Net, TARGETS, reals(8), "head")
_BLIP = (blip, None, pairs, "itm_head")
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
CASES = {
    "mlp": Case(MLP, ["lin0", "lin1"], reals(10), "head"),
    "mlp all-linear": Case(MLP, "all-linear", reals(10), "head", {"core": "full"}),
    "widths": Case(*_NET),
    "widths full": Case(*_NET, {"core": "full", "scale": 0.5}),
    "widths split": Case(*_NET, SPLIT),
    "widths split full dropout": Case(*_NET, {**SPLIT, "core": "full", "dropout": 0.2}),
    "widths dropout": Case(*_NET, {"dropout": 0.5}),
    "words": Case(Words, ["linear"], ids("ids"), "head"),
    "twice": Case(Twice, ["linear"], reals(8), "head"),
    "nested": Case(Nested, ["up", "down"], reals(8), "head", {"layers_to_transform": [1], "layers_pattern": "blocks"}),
    "decoder": Case(llama, _LINEAR, ids("input_ids"), "lm_head", {}, "logits"),
    "encoder-decoder": Case(
        t5,
        ["q", "k", "v", "wo"],
        ids("input_ids", "decoder_input_ids"),
        "decoder.block.0.layer.0.SelfAttention.o",
        {"core": "full"},
        "logits",
    ),
    "conv1d": Case(gpt2, ["c_attn", "c_fc"], ids("input_ids"), "lm_head", {"fused_slices": {"c_attn": 3}}, "logits"),
    "convolutions": Case(Patches, ["patch", "around", "line"], pictures, "head", exact=False),
    "attention": Case(Attended, ["attn", "mlp"], reals(8), "head", exact=False),
    "attention full dropout": Case(Attended, ["attn"], reals(8), "head", {"core": "full", "dropout": 0.2}, exact=False),
    "clip": Case(clip, None, pairs, "visual_projection", {}, "logits_per_image"),
    "blip": Case(*_BLIP, {}, "itm_score"),
    "blip gate context": Case(*_BLIP, {"gate": "scale_shift", "context": "batch"}, "itm_score"),
    "blip released": Case(*_BLIP, {"gate": "released", "context": "released", "core": "full"}, "itm_score"),
}
