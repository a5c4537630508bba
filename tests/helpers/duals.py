"""Tiny dual encoders with random weights and no tokenizer."""

from __future__ import annotations

import torch
from transformers import CLIPConfig, SiglipConfig

from aurora_petl.backbones import dual

WORDS, LONGEST = 50, 8


def tiny_dual(kind: str) -> dual.DualBackbone:
    """A CLIP (``clip``) or SigLIP (``siglip``) that reads pictures of 16 pixels and texts of 8 tokens."""
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(shape, vocab_size=WORDS, max_position_embeddings=LONGEST, bos_token_id=1, eos_token_id=WORDS - 1)
    parts = {"text_config": dict(text, projection_size=16), "vision_config": dict(shape, image_size=16, patch_size=8)}
    config = CLIPConfig(**parts, projection_dim=8) if kind == "clip" else SiglipConfig(**parts)
    torch.manual_seed(0)
    backbone = dual.empty(config, f"tiny {kind}")
    with torch.no_grad():
        for weight in backbone.model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)  # else features would all but agree
        if kind == "siglip":
            backbone.model.logit_scale.fill_(2.0)
            backbone.model.logit_bias.fill_(-3.0)
    return backbone


def dual_batch(count: int) -> dict[str, torch.Tensor]:
    """So many pairs, each text ending with its last token, as CLIP's do."""
    torch.manual_seed(1)
    ids = torch.randint(3, WORDS - 1, (count, LONGEST))
    ids[:, -1] = WORDS - 1
    pixels = torch.randn(count, 3, 16, 16)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
