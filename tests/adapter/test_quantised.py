"""Frozen bases in 8 and 4 bits, on a CPU: adapted, trained, merged, or refused as LoRA is."""

import copy
import importlib.util
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training, save_as_lora
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter.kinds import Aurora4bit, Aurora8bit, AuroraTorchao

IDS = torch.randint(3, 50, (4, 6), generator=torch.Generator().manual_seed(5))
NEEDS = {"4 bits": "bitsandbytes", "8 bits": "bitsandbytes", "torchao": "torchao"}
KINDS = {"4 bits": Aurora4bit, "8 bits": Aurora8bit, "torchao": AuroraTorchao}
quietly = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*inputs will be cast"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def quantisation(kind: str):
    if importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"{NEEDS[kind]} not installed")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_type": "nf4"}
    return BitsAndBytesConfig(**(four if kind == "4 bits" else {"load_in_8bit": True}))


def quantised(folder, kind: str) -> LlamaForCausalLM:
    settings = quantisation(kind)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@quietly
@pytest.mark.parametrize("kind", KINDS)
def test_adapted_trained_saved_merged(tmp_path, folder, kind):
    start = logits(quantised(folder, kind))  # another one, since bitsandbytes does not train after inference on a CPU
    torch.manual_seed(1)
    model = get_peft_model(prepare_model_for_kbit_training(quantised(folder, kind)), AuroraConfig(r=4))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer) is KINDS[kind]
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    before = copy.deepcopy(layer.frozen_weight)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    same = (
        layer.frozen_weight.dequantize() == before.dequantize() if kind == "torchao" else layer.frozen_weight == before
    )
    assert same.all()
    tuned = logits(model)
    with model.disable_adapter():
        assert torch.allclose(logits(model), start, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(folder, kind), tmp_path / "adapter")
    assert torch.allclose(logits(loaded), tuned, atol=1e-3)

    delta = layer.get_delta_weight("default")
    with pytest.warns(UserWarning, match="quantised weights rounds"):
        merged = model.merge_and_unload()
    assert type(merged.model.layers[0].self_attn.q_proj) is not KINDS[kind] and delta.any()
    rounded = (logits(merged) - tuned).abs().mean()  # by the width of the steps of the quantised weights
    assert rounded < 0.5 * (start - tuned).abs().mean()


@quietly
@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_lora_is(tmp_path, folder, kind):
    """The same update as a LoRA, merged by peft, gives the same weights, but where a value lies between two steps."""
    torch.manual_seed(1)
    ours = get_peft_model(quantised(folder, kind), AuroraConfig(r=4, init_weights=False))
    save_as_lora(tmp_path, ours, rank=4)
    lora = PeftModel.from_pretrained(quantised(folder, kind), tmp_path)
    assert isinstance(lora.peft_config["default"], LoraConfig)
    assert torch.allclose(lora.train()(IDS).logits, ours.train()(IDS).logits, atol=1e-3)
    with warnings.catch_warnings(action="ignore"):
        pair = [model.merge_and_unload().model.layers[1].self_attn.q_proj.weight for model in (lora, ours)]
    expected, found = (weight.dequantize() if kind == "torchao" else weight for weight in pair)
    assert torch.isclose(found.float(), expected.float(), atol=1e-5).float().mean() > 0.95


@quietly
@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_unmerged(folder, kind):
    torch.manual_seed(1)
    model = get_peft_model(quantised(folder, kind), AuroraConfig(r=4, init_weights=False))
    tuned = logits(model)
    with warnings.catch_warnings(action="ignore"):
        model.merge_adapter(safe_merge=True)
        merged = logits(model)
        model.unmerge_adapter()
    near = 0.5 * (tuned - logits(quantised(folder, kind))).abs().mean()
    assert (merged - tuned).abs().mean() < near and (logits(model) - tuned).abs().mean() < near


@quietly
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao not installed")
def test_weights_that_nobody_can_quantise_again():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.ModuleDict({"up": nn.Linear(64, 64)})
    quantize_(model, Int8WeightOnlyConfig())
    model.forward = lambda x: model["up"](x)
    adapted = get_peft_model(model, AuroraConfig(r=4, target_modules=["up"], init_weights=False))
    adapted(torch.randn(2, 64)).sum().backward()
    with pytest.raises(ValueError, match="does not say how they were quantised.*TorchAoConfig"):
        adapted.merge_adapter()


@quietly
@pytest.mark.parametrize("kind", ["4 bits", "8 bits"])
def test_all_linear_takes_them(folder, kind):
    model = get_peft_model(quantised(folder, kind), AuroraConfig(r=4, target_modules="all-linear"))
    kinds = {type(part) for part in model.modules() if isinstance(part, KINDS[kind])}
    assert kinds == {KINDS[kind]} and len(model.base_model.targeted_module_names) == 2 * 7
