"""Adapted layers of other types than `nn.Linear`, beyond what all cases of `test_common_cases.py` show of them."""

import importlib.util
import threading

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, save_as_lora
from torch import nn
from transformers.pytorch_utils import Conv1D

from aurora_petl.adapter import AuroraConfig, AuroraLinear
from aurora_petl.adapter.attention import AuroraAttention, AuroraProjection
from aurora_petl.adapter.kinds import AuroraConv, AuroraConv1D

from .cases import CASES

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5))


def adapted(name: str, **fields) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(CASES[name].base(), CASES[name].config(**fields)).eval()


def layers(model: nn.Module) -> dict[str, type]:
    return {name: type(part) for name, part in model.named_modules() if isinstance(part, AuroraLinear)}


def test_the_layer_fits_the_module():
    blocks = adapted("conv1d").base_model.model.transformer.h
    assert {type(block.attn.c_attn) for block in blocks} == {AuroraConv1D}
    assert blocks[0].attn.c_attn.aurora_P["default"].shape == (3, 4)  # query, key and value
    assert (blocks[0].attn.c_attn.in_features, blocks[0].attn.c_attn.out_features) == (16, 48)
    convolutions = adapted("convolutions").base_model.model
    assert layers(convolutions) == {"patch": AuroraConv, "around": AuroraConv, "line": AuroraConv}
    assert (convolutions.patch.in_features, convolutions.patch.out_features) == (3 * 4 * 4, 8)
    attended = adapted("attention").base_model.model
    inner = "attn.base_layer.out_proj"  # as LoRA names it
    assert layers(attended) == {"attn": AuroraAttention, inner: AuroraProjection, "mlp": AuroraLinear}
    assert attended.attn.aurora_P["default"].shape == (3, 4)
    assert attended.get_submodule(inner).aurora_P["default"].shape == (1, 4)


def test_all_linear_takes_conv1d():
    model = adapted("conv1d", target_modules="all-linear", fused_slices=None)
    assert set(layers(model).values()) == {AuroraConv1D} and len(layers(model)) == 2 * 4


def test_pictures_without_a_batch():
    model = adapted("convolutions").base_model.model
    pixels = torch.randn(3, 16, 16)
    assert torch.allclose(model.patch(pixels), model.patch(pixels[None])[0], atol=1e-6)


@pytest.mark.parametrize("name", ["convolutions", "attention"])
def test_what_is_no_lora(tmp_path, name):
    """peft turns matrices alone into a LoRA. A LoRA of an attention adds the update of the output layer twice."""
    with pytest.raises(TypeError, match=r"do not support LoRA conversion.*Aurora(Conv|Attention)"):
        save_as_lora(tmp_path, adapted(name), rank=4)


def test_the_encoder_layer_of_pytorch_calls_the_adapted_attention():
    """In inference it reads the weights of an attention that it knows, past every adapter."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = get_peft_model(encoder, AuroraConfig(r=4, target_modules=["self_attn"], init_weights=False)).eval()
    y = model(X)
    with torch.no_grad():
        assert torch.allclose(model(X), y, atol=1e-6)
        with model.disable_adapter():
            assert not torch.allclose(model(X), y, atol=1e-3)
        assert torch.allclose(model.merge_and_unload()(X), y, atol=1e-5)


def test_an_attention_is_called_as_pytorchs():
    model = adapted("attention").base_model.model
    q = X.clone().requires_grad_()
    y, weights = model.attn(query=q, key=q, value=q, average_attn_weights=False)
    assert y.shape == X.shape and weights.shape == (2, 2, 5, 5)
    y.sum().backward()
    assert q.grad.any() and not model.attn.base_layer.in_proj_weight.requires_grad
    assert model.attn.embed_dim == 8 and model.attn.batch_first and model.attn.in_proj_bias.shape == (24,)
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.attn.no_such_thing  # noqa: B018
    assert type(model.attn.base_layer.in_proj_weight) is nn.Parameter  # a pass leaves nothing behind
    assert type(model.attn.base_layer.out_proj) is AuroraProjection


def test_several_threads_run_one_attention():
    model, results = adapted("attention"), []
    inputs = [torch.randn(2, 5, 8) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

        def run(x):
            with torch.no_grad():
                for _ in range(20):
                    results.append((x, model(x)))

        threads = [threading.Thread(target=run, args=(x,)) for x in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    places = {id(x): place for place, x in enumerate(inputs)}
    assert len(results) == 80 and all(torch.allclose(y, expected[places[id(x)]], atol=1e-6) for x, y in results)


@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_compiled(name):
    case, model = CASES[name], adapted(name)
    compiled = torch.compile(model, backend="aot_eager")
    y = compiled(*case.inputs().values())
    y.sum().backward()
    assert torch.allclose(y, case.run(model), atol=1e-5)
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_in_bfloat16_and_under_autocast():
    for name in ("attention", "convolutions", "conv1d"):
        case = CASES[name]
        torch.manual_seed(1)
        model = get_peft_model(case.base().to(torch.bfloat16), case.config()).eval()
        y = case.run(model)
        y.sum().backward()
        assert y.dtype == torch.bfloat16 and y.isfinite().all()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        model = adapted(name)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = case.run(model)
        assert torch.allclose(rounded.float(), case.run(model), atol=0.2)


def test_on_top_of_another_method_an_attention_is_refused():
    model = get_peft_model(CASES["attention"].base(), LoraConfig(r=2, target_modules=["attn"]))
    with pytest.raises(ValueError, match="attn is adapted by another method"):
        get_peft_model(model.base_model.model, AuroraConfig(r=2, target_modules=["attn"]), "second")


def test_kinds_beside_each_other():
    """All of the same width share U and V, whatever their type."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.turned, self.attention = nn.Linear(8, 8), Conv1D(8, 8), nn.MultiheadAttention(8, 2)
            self.point = nn.Conv1d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.turned(torch.tanh(self.linear(x)))
            return self.point((x + self.attention(x, x, x)[0]).mT).mT

    torch.manual_seed(0)
    targets = ["linear", "turned", "attention", "point"]
    model = get_peft_model(Mixed(), AuroraConfig(r=4, target_modules=targets, init_weights=False)).eval()
    factors = model.base_model.model.aurora_factors["default"]
    assert {name for name, _ in factors.named_parameters()} == {"lambda_", "U_8", "V_8"}
    y = model(X)
    assert torch.allclose(model.merge_and_unload()(X), y, atol=1e-5)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("open_clip", "torchvision")),
    reason="open_clip not installed",
)
def test_a_model_of_open_clip(tmp_path):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    def base() -> nn.Module:
        torch.manual_seed(0)
        pictures = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
        return CLIP(16, pictures, CLIPTextCfg(layers=2, width=24, heads=2, context_length=12, vocab_size=60)).eval()

    def features(model: nn.Module) -> torch.Tensor:
        return torch.cat([model.encode_image(pixels), model.encode_text(ids)])

    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(1, 60, (3, 12))
    start, targets = features(base()), ["attn", "conv1"]
    model = get_peft_model(base(), AuroraConfig(r=4, target_modules=targets, init_weights=False)).eval()
    tuned = features(model.base_model.model)
    tuned.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert not torch.allclose(tuned, start, atol=1e-2)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
        assert torch.allclose(features(loaded.base_model.model), tuned, atol=1e-5)
        merged = model.merge_and_unload()
        assert (
            torch.allclose(features(merged), tuned, atol=1e-5)
            and merged.state_dict().keys() == base().state_dict().keys()
        )
