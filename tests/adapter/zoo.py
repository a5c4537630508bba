"""Tiny random models of every `model_type` that has default targets, with inputs that every tower takes part in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING

Inputs = dict[str, Any]
DRAW = torch.Generator().manual_seed(5)
PICTURES = torch.randn(2, 3, 16, 16, generator=DRAW)
IDS = torch.randint(3, 40, (2, 5), generator=DRAW)
IMAGE = 45  # the token that stands for a part of a picture

SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
WORDS = dict(vocab_size=50, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TEXT = SIZES | WORDS
GROUPED = TEXT | dict(num_key_value_heads=2)
HEADS = GROUPED | dict(head_dim=8)  # queries wider than the hidden states
VISION = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(image_size=16, patch_size=8, num_channels=3)
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


class Case(NamedTuple):
    """A model and what it computes."""

    name: str  # of transformers' class
    fields: dict[str, Any]  # of the configuration
    inputs: Callable[[], Inputs]
    output: str = "last_hidden_state"


def pictures() -> Inputs:
    return {"pixel_values": PICTURES}


def words() -> Inputs:
    return {"input_ids": IDS}


def both() -> Inputs:
    return {"input_ids": IDS, "pixel_values": PICTURES}


def two_texts() -> Inputs:
    return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}


def patches() -> Inputs:
    """Pictures for Siglip2, cut into patches that lie on a grid."""
    cut = PICTURES.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 4, 192)
    whole = torch.ones(2, 4, dtype=torch.long)
    return {"pixel_values": cut, "pixel_attention_mask": whole, "spatial_shapes": torch.tensor([[2, 2], [2, 2]])}


def words_and_patches() -> Inputs:
    return words() | patches()


def writer(tokens: int, **more: Any) -> Callable[[], Inputs]:
    """A picture of so many tokens, then words."""
    ids = torch.cat([torch.full((2, tokens), IMAGE), IDS], 1)
    return lambda: {"input_ids": ids, "pixel_values": PICTURES, "use_cache": False, **more}


def qwen(patch: int) -> Callable[[], Inputs]:
    """A picture of 4 x 4 patches in two frames, which are merged by fours, then words."""
    cut = torch.randn(32, 3 * 2 * patch * patch, generator=torch.Generator().manual_seed(5))
    ids = torch.cat([torch.full((2, 1), 46), torch.full((2, 4), IMAGE), IDS], 1)
    kinds = (ids == IMAGE).int()
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return lambda: {
        "input_ids": ids, "pixel_values": cut, "image_grid_thw": grid, "mm_token_type_ids": kinds, "use_cache": False,
    }  # fmt: skip


def _vision(prefix: str, model: str, **more: Any) -> Case:
    return Case(f"{prefix}{model}", VISION | more, pictures)


_T5 = dict(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4)
_T5 |= dict(dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0)
_QFORMER = SIZES | dict(vocab_size=50, encoder_hidden_size=24, max_position_embeddings=16)
_QWEN_IDS = dict(image_token_id=IMAGE, vision_start_token_id=46, video_token_id=47, vision_end_token_id=48)
_QWEN_VISION = dict(depth=2, num_heads=4, patch_size=4, in_channels=3, spatial_merge_size=2, temporal_patch_size=2)
_SIGLIP = dict(VISION, model_type="siglip_vision_model")
_CLIP = dict(VISION, model_type="clip_vision_model")
_PIXELS = PICTURES[:, None]  # one picture a text


def _smol(name: str) -> Case:
    fields = dict(image_token_id=IMAGE, scale_factor=2, pad_token_id=0)
    fields |= dict(text_config=GROUPED | {"model_type": "llama"}, vision_config=VISION)
    return Case(f"{name}Model", fields, writer(1, pixel_values=_PIXELS))


def _llava(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return dict(
        text_config=text, vision_config=_CLIP, image_token_id=IMAGE, image_token_index=IMAGE, vision_feature_layer=-1, **more
    )


_LLAMA = GROUPED | {"model_type": "llama"}
_GEMMA3 = HEADS | dict(sliding_window=8)
_GEMMA3N = HEADS | dict(vocab_size_per_layer_input=50, hidden_size_per_layer_input=4, num_kv_shared_layers=0, laurel_rank=4)
_GEMMA4 = HEADS | dict(global_head_dim=8, hidden_size_per_layer_input=4, vocab_size_per_layer_input=50, sliding_window=8)
_QWEN_TEXT = HEADS | dict(rope_scaling=ROPE, rope_parameters=ROPE)

CASES: dict[str, Case] = {
    "blip": Case("BlipModel", dict(text_config=TEXT | dict(encoder_hidden_size=24), vision_config=VISION), both),
}
