"""Pretrained vision-language models behind a few capabilities (`base`): a module a family, and a row in `families`."""

from .base import AnsweringBackbone, DualEncoder, Encoded, Matcher, Texts, Tunable, is_matcher, similarity
from .blip import fusion as fusion  # registers what the adapter adds to BLIP
from .load import checkpoint_layers, embedded_models, find_family, load_backbone

__all__ = [
    "AnsweringBackbone",
    "DualEncoder",
    "Encoded",
    "Matcher",
    "Texts",
    "Tunable",
    "checkpoint_layers",
    "embedded_models",
    "find_family",
    "is_matcher",
    "load_backbone",
    "similarity",
]
