"""Frozen vision-language models behind one interface; one file a family."""

from . import blip_fusion as blip_fusion  # registers what the adapter adds to BLIP
from .base import AnsweringBackbone, Backbone, Tunable, checkpoint_layers, embedded_models, load_backbone

__all__ = ["AnsweringBackbone", "Backbone", "Tunable", "checkpoint_layers", "embedded_models", "load_backbone"]
