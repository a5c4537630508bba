"""A tiny BLIP whose adapter has context and gates that do something."""

from __future__ import annotations

import math

import torch
from peft import PeftModel, get_peft_model
from transformers import BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter.additions import additions
from tests.adapter.tiny import blip_config

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 50, (4, 6), generator=GENERATOR)
STATES = torch.randn(4, 5, 16, generator=GENERATOR)  # of pictures
TEXTS = torch.randn(3, 16, generator=GENERATOR)  # a context
BOTH = dict(context="batch", gate="scale_shift")


def same_blip() -> BlipForImageTextRetrieval:
    torch.manual_seed(0)
    return BlipForImageTextRetrieval(blip_config()).eval()


def adapted(base=None, **fields) -> PeftModel:
    """An adapter whose gates, context and bank are off their start, and whose weight updates are 0."""
    model = get_peft_model(base or same_blip(), AuroraConfig(r=4, **(BOTH | fields))).eval()
    return shaken(model, "default")


@torch.no_grad()
def shaken(model, adapter):
    torch.manual_seed(1)
    for _, _, addition in additions(model):
        for name, weight in [*addition.named_parameters(), *addition.named_buffers()]:
            if name.endswith(adapter):
                weight.add_(0.5 * torch.randn_like(weight))
    return model


def fused(model, ids=IDS, states=STATES, **more) -> torch.Tensor:
    """Last states of texts that meet pictures, one each."""
    return model.text_encoder(input_ids=ids, encoder_hidden_states=states, **more).last_hidden_state


def expected_context(f, texts, eta) -> torch.Tensor:
    rows = []
    for f_i in f:
        weights = torch.stack([(f_i * t).sum() / math.sqrt(16) for t in texts]).exp()
        rows.append(f_i + eta * sum(w * t for w, t in zip(weights / weights.sum(), texts, strict=True)))
    return torch.stack(rows)
