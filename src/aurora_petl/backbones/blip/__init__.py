"""BLIP (Li et al., 2022, arXiv 2201.12086): the model, its attention, and the conversion of original checkpoints."""

from .config import configure
from .model import check, empty, load

__all__ = ["check", "configure", "empty", "load"]
