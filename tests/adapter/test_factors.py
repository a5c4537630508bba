"""The sizes, the start and the modes of the shared factors."""

import pytest
import torch
from peft import get_peft_model
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig, AuroraFactors, AuroraLinear, adapter_size

from .tiny import aurora_config


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def shapes(model) -> list[tuple[int, int, int]]:
    layers = [m for m in model.modules() if isinstance(m, AuroraLinear)]
    return [(m.in_features, m.out_features, m.aurora_P["default"].shape[0]) for m in layers]


@pytest.mark.parametrize(("core", "own"), [("diagonal", 64), ("full", 64**3)])
def test_blip_base_size(core, own):
    config = BlipConfig()
    config.vision_config.hidden_size = 768
    with torch.device("meta"):
        model = BlipForImageTextRetrieval(config)
    adapted = get_peft_model(model, AuroraConfig(r=64, core=core))
    assert len(shapes(adapted)) == 12 + 72 and sum(s for *_, s in shapes(adapted)) == 108
    expected = 2 * 768 * 64 + 108 * 64 + own
    assert trainable(adapted) == adapter_size(shapes(adapted), 64, core) == expected
    assert adapted.get_nb_trainable_parameters()[0] == expected
    if core == "diagonal":
        assert expected == 105_280


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
        rows = factors.add(8, 8, 5, torch.device("cpu"))
        mode = factors.mode(rows)
        assert torch.equal(factors.mode(rows), mode)
        ratio = factors.mode(rows, training=True) / mode
        kept = ratio != 0
        assert torch.allclose(ratio[kept], torch.tensor(4 / 3)) and 0.5 < kept.float().mean() < 0.95
        if core == "full":  # whole columns, i.e. components of U^T x
            assert torch.equal(kept, kept[:, :1].expand_as(kept))
