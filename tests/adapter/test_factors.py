"""The sizes, the start and the modes of the shared factors."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
)

from aurora_petl.adapter import AuroraConfig, AuroraFactors, AuroraLinear, adapter_size
from aurora_petl.adapter.factors import Widths

from .tiny import aurora_config


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def shapes(model) -> list[tuple[int, int, int, int]]:
    layers = [m for m in model.modules() if isinstance(m, AuroraLinear)]
    assert all(math.prod(m.aurora_split["default"]) == len(m.aurora_P["default"]) for m in layers)
    return [(m.in_features, m.out_features, *m.aurora_split["default"]) for m in layers]


def blip(width: int, layers: int, heads: int) -> BlipForImageTextRetrieval:
    vision = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    config = BlipConfig(vision_config=vision, text_config=dict(encoder_hidden_size=width, num_attention_heads=12))
    return BlipForImageTextRetrieval(config)


def blip_base() -> BlipForImageTextRetrieval:
    return blip(768, 12, 12)


def blip_large() -> BlipForImageTextRetrieval:
    return blip(1024, 24, 16)


def clip_base() -> CLIPModel:
    return CLIPModel(CLIPConfig(vision_config=dict(patch_size=32)))


def blip_2() -> Blip2ForConditionalGeneration:
    text = dict(model_type="opt", hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, ffn_dim=10240)
    return Blip2ForConditionalGeneration(Blip2Config(text_config=text))


MORE = dict(
    target_modules=["qkv", "query", "key", "value", "projection", "fc1", "fc2"],
    fused_slices={"fc1": 4},
    fused_columns={"fc2": 4},
)


@pytest.mark.parametrize("core", ["diagonal", "full"])
@pytest.mark.parametrize(
    ("make", "fields", "layers", "slices", "inputs", "outputs"),
    [
        # qkv in 12 vision layers; query, key, value of self- and cross-attention in 12 text layers
        (blip_base, {}, 12 + 72, 36 + 72, [768], [768]),
        # and 1 + 4 + 4 slices more in every vision layer
        (blip_base, MORE, 12 * 4 + 72, 36 + 12 * 9 + 72, [768], [768]),
        # cross-attention has keys and values of 1024 -> 768
        (blip_large, {}, 24 + 72, 72 + 72, [1024, 768], [1024, 768]),
        (blip_large, MORE, 24 * 4 + 72, 72 + 24 * 9 + 72, [1024, 768], [1024, 768]),
        (clip_base, {}, 72, 36 + 36, [768, 512], [768, 512]),
        # 39 vision layers; 12 of the Q-Former, every second with cross-attention of 1408 -> 768; 32 of OPT 2.7B
        (blip_2, {}, 39 + 36 + 18 + 96, 117 + 36 + 18 + 96, [1408, 768, 2560], [1408, 768, 2560]),
    ],
)
def test_exact_sizes(make, fields, layers, slices, inputs, outputs, core):
    with torch.device("meta"):
        model = make()
    adapted = get_peft_model(model, AuroraConfig(r=64, core=core, **fields))
    expected = 64 * (sum(inputs) + sum(outputs) + slices) + (64 if core == "diagonal" else 64**3)
    assert len(shapes(adapted)) == layers and sum(rows * columns for *_, rows, columns in shapes(adapted)) == slices
    assert trainable(adapted) == adapter_size(shapes(adapted), 64, core) == expected
    assert adapted.get_nb_trainable_parameters()[0] == expected
    if make is blip_base and core == "diagonal":
        assert expected == (112_192 if fields else 105_280)


@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_size_with_several_widths(net, core):
    adapted = get_peft_model(net, aurora_config(core=core))
    # U: 8, 12; V: 8 (qkv's slices, down, square), 12; P: 3 + 1 + 1 + 1
    expected = 4 * (8 + 12 + 8 + 12 + 6) + (4 if core == "diagonal" else 64)
    assert trainable(adapted) == adapter_size(shapes(adapted), 4, core) == expected


def test_start_is_random_but_for_V(net):
    adapted = get_peft_model(net, aurora_config(init_weights=True))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert (parameter.std() == 0) == (".V_" in name)
            assert parameter.any() == (".V_" not in name)


def test_rank_dropout_masks_components():
    torch.manual_seed(0)
    for core in ("diagonal", "full"):
        factors = AuroraFactors(aurora_config(r=16, core=core, dropout=0.25), torch.zeros(1))
        rows = factors.add(Widths(8, 8), 5, torch.device("cpu"))
        mode = factors.mode(rows)
        assert torch.equal(factors.mode(rows), mode)
        ratio = factors.mode(rows, training=True) / mode
        kept = ratio != 0
        assert torch.allclose(ratio[kept], torch.tensor(4 / 3)) and 0.5 < kept.float().mean() < 0.95
        if core == "full":  # whole columns, i.e. components of U^T x
            assert torch.equal(kept, kept[:, :1].expand_as(kept))
