"""Frozen vision-language models behind one interface; one file a family."""

from .base import Backbone, embedded_models, load_backbone

__all__ = ["Backbone", "embedded_models", "load_backbone"]
