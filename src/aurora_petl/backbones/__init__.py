"""Pretrained vision-language models behind a few capabilities (`base`): a module a family, and a row in `families`."""

from .base import (
    DualEncoder,
    Encoded,
    Matcher,
    Ranker,
    Texts,
    Tunable,
    Writer,
    is_matcher,
    is_ranker,
    similarity,
)
from .blip import fusion as fusion  # registers what the adapter adds to BLIP
from .load import checkpoint_layers, embedded_models, find_family, load_backbone

__all__ = [
    "DualEncoder",
    "Encoded",
    "Matcher",
    "Ranker",
    "Texts",
    "Tunable",
    "Writer",
    "checkpoint_layers",
    "embedded_models",
    "find_family",
    "is_matcher",
    "is_ranker",
    "load_backbone",
    "similarity",
]
