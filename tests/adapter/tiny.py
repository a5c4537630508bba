"""Tiny models for the adapter's tests."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BlipConfig

from aurora_petl.adapter import AuroraConfig


class Net(nn.Module):
    """Two widths, a fused layer of three slices and a head: (batch, tokens, 8) -> (batch, tokens, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.square = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + torch.softmax(q @ k.mT, -1) @ v
        return self.head(x + self.square(torch.tanh(self.down(torch.tanh(self.up(x))))))


TARGETS = ["qkv", "up", "down", "square"]


# `Net.up` as three slices of 4 rows, `Net.down` as three of 4 columns
SPLIT = {"fused_slices": {"up": 3}, "fused_columns": {"down": 3}}


def aurora_config(**fields) -> AuroraConfig:
    """r=4 on every layer of `Net` but the head, drawn so that dW is not 0."""
    return AuroraConfig(**{"r": 4, "target_modules": TARGETS, "init_weights": False, **fields})


def blip_config(**vision) -> BlipConfig:
    text = dict(vocab_size=50, hidden_size=16, encoder_hidden_size=16, num_attention_heads=2)
    text |= dict(intermediate_size=32, num_hidden_layers=2, max_position_embeddings=16)
    text |= dict(pad_token_id=0, bos_token_id=1, sep_token_id=2, eos_token_id=2, hidden_dropout_prob=0.0)
    text |= dict(attention_probs_dropout_prob=0.0, projection_dim=8)
    pictures = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    pictures |= dict(image_size=16, patch_size=8, initializer_range=0.02) | vision
    return BlipConfig(text_config=text, vision_config=pictures, image_text_hidden_size=8, projection_dim=8)


def pair_of_blip() -> dict[str, torch.Tensor]:
    """One batch of two pictures and texts."""
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": torch.randint(3, 50, (2, 5))}
