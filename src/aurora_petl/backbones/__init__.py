"""Frozen vision-language models behind one interface; one file a family."""

from .base import AnsweringBackbone, Backbone, Tunable, checkpoint_layers, embedded_models, load_backbone
from .blip import fusion as fusion  # registers what the adapter adds to BLIP

__all__ = ["AnsweringBackbone", "Backbone", "Tunable", "checkpoint_layers", "embedded_models", "load_backbone"]
