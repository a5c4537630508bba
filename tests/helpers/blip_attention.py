"""Small BLIPs with attention of either kind, inputs to them, and tensors compared."""

import copy

import torch
from peft import LoraConfig
from transformers import (
    BlipConfig,
)

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones.blip.attention import (
    use_sdpa,
)
from aurora_petl.backbones.blip.model import ENC

TOKENS = 9
ADAPTERS = {
    "none": None,
    "aurora": AuroraConfig(r=4, target_modules=["qkv", "query", "key", "value"], init_weights=False),
    "lora": LoraConfig(r=4, target_modules=["qkv", "query", "key", "value"], init_lora_weights=False),
}
WHICH = {
    "equal": [0, 1, 2, 0, 1, 2],
    "unequal": [2, 0, 1, 2, 2, 1],
    "one for all": [1] * 6,
    "two rows": [2, 2, 2, 2, 0, 2],  # of several pictures one row each, of the third more
}


def config(**text) -> BlipConfig:
    """Weights as alive as 0.02 makes them at width 768; the vision tower's default of 1e-10 would compare zeros."""
    text = dict(hidden_size=64, encoder_hidden_size=64, num_attention_heads=4, intermediate_size=96) | text
    text |= dict(num_hidden_layers=2, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, sep_token_id=2)
    text |= dict(vocab_size=ENC + 1, initializer_range=0.07, projection_dim=24, label_smoothing=0.1)
    vision = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    vision |= dict(image_size=32, patch_size=8, initializer_range=0.07)
    return BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24, initializer_range=0.07
    )


def made(kind, **text):
    """A model in evaluation mode with every weight, biases and norms too, off its start."""
    torch.manual_seed(0)
    model = kind(config(**text)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return model


def both(kind, **text):
    """transformers' model and its copy with our attention."""
    theirs = made(kind, **text)
    ours = copy.deepcopy(theirs)
    assert use_sdpa(ours)
    return theirs, ours


def words(rows, width=TOKENS, padded=True):
    """Token ids and mask (rows, width), every other row shorter if ``padded``."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, ENC, (rows, width)), torch.ones(rows, width, dtype=torch.long)
    if padded:
        mask[1::2, -3:] = 0
    return ids * mask, mask


def pictures(count):
    torch.manual_seed(2)
    return torch.randn(count, 3, 32, 32)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours, theirs, tolerance=1e-5):
    """Each tensor within ``tolerance`` of the largest number among those it is compared with."""
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    assert scale > 1e-3
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) <= tolerance * scale, name
