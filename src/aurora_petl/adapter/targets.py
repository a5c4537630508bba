"""Which layers an adapter takes if its configuration names none: a table by `model_type`, free of torch.

The layers are query, key and value of every tower, self- and cross-attention alike. A model of several towers counts by
the type of the whole, as `config.model_type` says it: its row names the layers of all the towers it can have. Names are
endings of full names, and a name that a model does not have does no harm: releases of transformers renamed some layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

_BERT = ("query", "key", "value")
_PROJ = ("q_proj", "k_proj", "v_proj")
_RENAMED = (*_PROJ, *_BERT)  # the second three until transformers 5.7 or later
_T5 = ("q", "k", "v")

# Towers of any type beside each other: language models with separate matrices, and phi3 with a fused one.
_TOWERS = (*_PROJ, "qkv_proj")

# gemma4 wraps the layers of its picture and sound towers in a module of the same name.
_GEMMA4 = r"(.*\.)?language_model\..*\.[qkv]_proj|(.*\.)?(vision|audio)_tower\..*\.[qkv]_proj\.linear"

TARGET_MODULES: dict[str, tuple[str, ...] | str] = {
    # pictures with texts
    "blip": ("qkv", *_BERT),
    "blip_vision_model": ("qkv",),
    "blip_text_model": _BERT,
    "blip-2": ("qkv", *_BERT, *_PROJ, *_T5),
    "blip_2_vision_model": ("qkv",),
    "blip_2_qformer": _BERT,
    "clip": _PROJ,
    "clip_vision_model": _PROJ,
    "clip_text_model": _PROJ,
    "metaclip_2": _PROJ,
    "metaclip_2_vision_model": _PROJ,
    "metaclip_2_text_model": _PROJ,
    "siglip": _PROJ,
    "siglip_vision_model": _PROJ,
    "siglip_text_model": _PROJ,
    "siglip2": _PROJ,
    "siglip2_vision_model": _PROJ,
    "siglip2_text_model": _PROJ,
    # models that write about pictures
    "gemma3": _TOWERS,
    "gemma4": _GEMMA4,
    "gemma4_vision": r".*\.[qkv]_proj\.linear",
    "idefics3": _TOWERS,
    "idefics3_vision": _PROJ,
    "internvl": _TOWERS,
    "internvl_vision": _PROJ,
    "llava": _TOWERS,
    "llava_next": _TOWERS,
    "llava_onevision": _TOWERS,
    "paligemma": _TOWERS,
    "qwen2_vl": (*_PROJ, "qkv"),
    "qwen2_vl_text": _PROJ,
    "qwen2_vl_vision": ("qkv",),
    "qwen2_5_vl": (*_PROJ, "qkv"),
    "qwen2_5_vl_text": _PROJ,
    "qwen2_5_vl_vision": ("qkv",),
    "qwen3_vl": (*_PROJ, "qkv"),
    "qwen3_vl_text": _PROJ,
    "qwen3_vl_vision": ("qkv",),
    "smolvlm": _TOWERS,
    "smolvlm_vision": _PROJ,
    # pictures alone
    "beit": _RENAMED,
    "deit": _RENAMED,
    "dinov2": _RENAMED,
    "dinov2_with_registers": _RENAMED,
    "dinov3_vit": _PROJ,
    "vit": _RENAMED,
    # encoders of text, and encoders with a decoder
    "bart": _PROJ,
    "bert": _BERT,
    "deberta-v2": ("query_proj", "key_proj", "value_proj"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "electra": _BERT,
    "layoutlm": _BERT,
    "mt5": _T5,
    "roberta": _BERT,
    "t5": _T5,
    "xlm-roberta": _BERT,
    # decoders of text
    "gemma": _PROJ,
    "gemma2": _PROJ,
    "gemma3_text": _PROJ,
    "gemma3n_text": _PROJ,
    "gemma4_text": _PROJ,
    "gpt2": ("c_attn", "q_attn"),
    "gptj": _PROJ,
    "gpt_neo": _PROJ,
    "llama": _PROJ,
    "mistral": _PROJ,
    "mixtral": _PROJ,
    "opt": _PROJ,
    "phi": _PROJ,
    "phi3": ("qkv_proj",),
    "qwen2": _PROJ,
    "qwen3": _PROJ,
    "smollm3": _PROJ,
    "stablelm": _PROJ,
}

# model_type -> the layer that stacks the heads of queries on those of keys and those of values
FUSED_HEADS = {"phi3": "qkv_proj"}

# model_type -> layers that stack matrices of equal height: query, key and value; key and value
FUSED_LAYERS = {"gpt2": {"attn.c_attn": 3, "crossattention.c_attn": 2}}

# Names that queries, keys and values have in one model or another.
_KNOWN_NAMES = (_PROJ, _BERT, _T5, ("q_lin", "k_lin", "v_lin"), ("query_proj", "key_proj", "value_proj"), ("qkv",))


def default_targets(model_type: object) -> list[str] | str | None:
    """What `target_modules` stands for if it is None: name endings, or a regex over full names; None for a type that is
    not in the table.

    Example:
        >>> default_targets("clip")
        ['q_proj', 'k_proj', 'v_proj']
    """
    row = TARGET_MODULES.get(model_type) if isinstance(model_type, str) else None
    return list(row) if isinstance(row, tuple) else row


def default_slices(model_config: Mapping[str, Any]) -> dict[str, int]:
    """Into how many slices of equal height the fused layers of a model divide that the table of `AuroraConfig` does not
    know, since it depends on the model's type, and for some on its heads.

    H heads of queries and G heads of keys lie above G heads of values. H is a multiple of G, so that the layer is
    H / G + 2 slices as high as its keys: the queries are H / G slices.

    Args:
        model_config: a transformers configuration as a dictionary; those of towers lie in it.

    Example:
        >>> default_slices({"model_type": "phi3", "num_attention_heads": 24, "num_key_value_heads": 8})
        {'qkv_proj': 5}
    """
    slices = {}
    for config in _with_towers(model_config):
        layer, heads = FUSED_HEADS.get(str(config.get("model_type"))), config.get("num_attention_heads")
        if layer is not None and heads:
            slices[layer] = heads // (config.get("num_key_value_heads") or heads) + 2
        slices |= FUSED_LAYERS.get(str(config.get("model_type")), {})
    return slices


def suggested_targets(names: Collection[str]) -> list[str] | None:
    """Endings that are called like queries, keys and values in other models, if a model has them all.

    Args:
        names: the last parts of the names of the model's linear layers.
    """
    return next((list(known) for known in _KNOWN_NAMES if set(known) <= set(names)), None)


def _with_towers(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for part in config.values():
        if isinstance(part, Mapping) and "model_type" in part:
            yield from _with_towers(part)
