"""Frozen vision-language models behind one interface; one file a family."""

from .base import AnsweringBackbone, Backbone, Tunable, embedded_models, load_backbone

__all__ = ["AnsweringBackbone", "Backbone", "Tunable", "embedded_models", "load_backbone"]
