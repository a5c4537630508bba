"""Decoder models that write about pictures, on transformers' ``AutoModelForImageTextToText``: Qwen2-VL, Qwen2.5-VL,
Qwen3-VL, InternVL, SmolVLM, Idefics3, PaliGemma and LLaVA."""

from .model import check, configure, empty, load

__all__ = ["check", "configure", "empty", "load"]
