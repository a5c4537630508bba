"""peft's ordinary calls on an adapted model."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
)

from aurora_petl.adapter import AuroraConfig, AuroraLinear, adapter_size
from aurora_petl.backbones import checkpoint_layers

from .tiny import SPLIT, Net, aurora_config, blip_config

CORES = ["diagonal", "full"]
X = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(5))


def same_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def adapted_names(model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, AuroraLinear)]


def score(model, pair):
    return model(**pair, use_itm_head=True).itm_score


each_split = pytest.mark.parametrize("split", [{}, SPLIT], ids=["plain", "split"])


@each_split
@pytest.mark.parametrize("core", CORES)
def test_start_equals_the_base_to_the_bit(net, blip, pair, core, split):
    expected, expected_blip = net(X), score(blip, pair)
    few = net(X[:1, :2])
    model = get_peft_model(net, aurora_config(core=core, init_weights=True, **split))
    assert torch.equal(model(X), expected) and torch.equal(model(X[:1, :2]), few)
    adapted = get_peft_model(blip, AuroraConfig(r=4, core=core)).eval()
    assert torch.equal(score(adapted, pair), expected_blip)


def test_default_targets_of_blip(blip, pair):
    model = get_peft_model(blip, AuroraConfig(r=4))
    names = adapted_names(model.base_model.model)
    assert len(names) == 2 + 2 * 6
    assert "vision_model.encoder.layers.0.self_attn.qkv" in names
    assert "text_encoder.encoder.layer.1.attention.self.query" in names
    assert "text_encoder.encoder.layer.1.crossattention.self.value" in names
    score(model, pair).sum().backward()
    V = model.base_model.aurora_factors["default"].V_16
    assert V.grad is not None and V.grad.any()


def test_optional_targets_of_blip(blip, pair):
    """Attention output and MLPs of the vision tower, in slices of its width, add rows of P alone."""
    targets = ["qkv", "query", "key", "value", "projection", "fc1", "fc2"]
    split = {"fused_slices": {"fc1": 2}, "fused_columns": {"fc2": 2}}
    default = adapter_size([(16, 48, 3)] * 2 + [(16, 16, 1)] * 12, r=4)
    model = get_peft_model(blip, AuroraConfig(r=4, target_modules=targets, init_weights=False, **split)).eval()
    assert model.get_nb_trainable_parameters()[0] == default + 2 * (1 + 2 + 2) * 4
    expected = score(model, pair)
    expected.sum().backward()
    rows = [module.aurora_P["default"] for module in model.modules() if isinstance(module, AuroraLinear)]
    assert len(rows) == 2 * 4 + 12 and all(row.grad.abs().sum(1).all() for row in rows)
    assert torch.allclose(score(model.merge_and_unload(), pair), expected, atol=1e-5)


def test_default_targets_of_clip_and_blip_2():
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "hidden_size": 32}))
        opt = dict(model_type="opt", vocab_size=9, ffn_dim=16, word_embed_proj_dim=16, **small)
        opt.pop("intermediate_size")
        blip_2 = Blip2ForConditionalGeneration(
            Blip2Config(vision_config=small, qformer_config={**small, "encoder_hidden_size": 16}, text_config=opt)
        )
    model = get_peft_model(clip, AuroraConfig(r=4))
    assert len(adapted_names(model)) == 6
    factors = model.base_model.aurora_factors["default"]
    assert {n for n, _ in factors.named_parameters()} == {"U_16", "V_16", "U_32", "V_32", "lambda_"}
    assert len(adapted_names(get_peft_model(blip_2, AuroraConfig(r=4)))) == 1 + 6 + 3


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"target_modules": r".*vision_model.*\.qkv"}, 2),
        ({"target_modules": ["query"]}, 4),
        ({"target_modules": ["query"], "exclude_modules": r".*crossattention.*"}, 2),
        ({"layers_to_transform": [1]}, 7),
        ({"target_modules": "all-linear"}, 2 * 4 + 2 * 10 + 3),
        ({"target_modules": "all-linear", "modules_to_save": ["itm_head"]}, 2 * 4 + 2 * 10 + 2),
    ],
)
def test_ways_to_target(blip, pair, fields, count):
    model = get_peft_model(blip, AuroraConfig(r=4, **fields))
    assert len(adapted_names(model)) == count
    score(model, pair).sum().backward()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@each_split
@pytest.mark.parametrize("core", CORES)
def test_save_and_load(tmp_path, core, split, low_cpu_mem_usage):
    model = get_peft_model(same_net(), aurora_config(core=core, modules_to_save=["head"], **split))
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.mul_(2)
    expected = model(X)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    other = 4 if split else 12
    shared = {"U_8", f"U_{other}", "V_8", f"V_{other}", "lambda_" if core == "diagonal" else "C"}
    names = {f"base_model.model.aurora_factors.{name}" for name in shared}
    names |= {f"base_model.model.{name}.aurora_P" for name in ("qkv", "up", "down", "square")}
    names |= {"base_model.model.head.weight", "base_model.model.head.bias"}
    assert set(saved) == names

    loaded = PeftModel.from_pretrained(same_net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(X), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    resumed = PeftModel.from_pretrained(same_net(), tmp_path, is_trainable=True)
    assert resumed.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    with_other = get_peft_model(same_net(), aurora_config(r=7, target_modules=["up"]), adapter_name="other")
    result = with_other.load_adapter(tmp_path, "loaded", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.missing_keys and not result.unexpected_keys
    with_other.set_adapter("loaded")
    assert torch.equal(with_other(X), expected)


def test_blip_in_a_new_process(tmp_path, blip, pair):
    blip.save_pretrained(tmp_path / "base")
    base = BlipForImageTextRetrieval.from_pretrained(tmp_path / "base")
    config = AuroraConfig(r=4, init_weights=False, context="batch", gate="scale_shift")  # which BLIP's family registers
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(7)
    script = f"""
        import torch, aurora_petl
        from peft import AutoPeftModel
        from safetensors.torch import load_file, save_file
        model = AutoPeftModel.from_pretrained({str(tmp_path / "adapter")!r})
        pair = load_file({str(tmp_path / "pair.safetensors")!r})
        with torch.no_grad():
            score = model(**pair, use_itm_head=True).itm_score
        save_file({{"score": score}}, {str(tmp_path / "score.safetensors")!r})
    """
    save_file(pair, tmp_path / "pair.safetensors")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # sums of other threads round differently
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
    assert torch.equal(load_file(tmp_path / "score.safetensors")["score"], score(model, pair))
    again = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(score(again, pair), score(model, pair))


@each_split
@pytest.mark.parametrize("core", CORES)
def test_merge_and_unmerge(core, split):
    base, model = same_net(), get_peft_model(same_net(), aurora_config(core=core, dropout=0.5, **split)).eval()
    expected = model(X)
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(model(X), expected, atol=1e-5)
    with model.disable_adapter():
        assert torch.allclose(model(X), base(X), atol=1e-5)
    assert torch.allclose(model(X), expected, atol=1e-5)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.allclose(model(X), expected, atol=1e-5)
    for name, weight in base.named_parameters():
        owner, _, leaf = name.rpartition(".")
        restored = model.base_model.model.get_submodule(owner)
        restored = getattr(getattr(restored, "base_layer", restored), leaf)
        assert torch.allclose(restored, weight, atol=1e-6)
    merged = model.merge_and_unload()
    assert type(merged) is Net and not adapted_names(merged)
    assert torch.allclose(merged(X), expected, atol=1e-5)
    assert set(merged.state_dict()) == set(base.state_dict())


def test_merge_refuses_nan(net):
    model = get_peft_model(net, aurora_config())
    model.base_model.aurora_factors["default"].U_8.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN.*default"):
        model.merge_adapter(safe_merge=True)


def test_unload_and_disable(net):
    expected = net(X)
    model = get_peft_model(net, aurora_config())
    assert not torch.allclose(model(X), expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(X), expected)
    assert model.get_nb_trainable_parameters()[0] > 0
    assert torch.equal(model.unload()(X), expected)


def test_two_adapters():
    model = get_peft_model(same_net(), aurora_config())
    first = model(X)
    model.add_adapter("second", aurora_config(r=6, core="full", fused_slices={"qkv": 1}))
    assert torch.equal(model(X), first)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".default" in n for n in trainable)
    model.set_adapter("second")
    second = model(X)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".second" in n for n in trainable)
    assert not torch.allclose(first, second, atol=1e-3)

    # both active: the sum of both updates
    model.base_model.set_adapter(["default", "second"])
    layer = model.base_model.model.up
    update = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    dense = torch.nn.functional.linear(X, layer.base_layer.weight + update, layer.base_layer.bias)
    assert torch.allclose(layer(X), dense, atol=1e-5)
    both = model(X)
    both.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.merge_adapter()
    assert torch.allclose(model(X), both, atol=1e-5)
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("second")
    model.unmerge_adapter()

    model.set_adapter("second")
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("second")
    assert model.active_adapter == "default" and not any(".second" in n for n, _ in model.named_parameters())
    assert torch.allclose(model(X), first, atol=1e-5)
    model.add_adapter("second", aurora_config(r=2))
    assert model.base_model.aurora_factors["second"].U_8.shape == (8, 2)


def test_saving_one_of_two_adapters(tmp_path):
    model = get_peft_model(same_net(), aurora_config())
    model.add_adapter("second", aurora_config(target_modules=["up"]))
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 5 + 4
    second = load_file(tmp_path / "second" / "adapter_model.safetensors")
    assert {n.rpartition(".")[2] for n in second} == {"U_8", "V_12", "lambda_", "aurora_P"}


def test_status(net):
    model = get_peft_model(net, aurora_config())
    status = model.get_model_status()
    assert status.num_adapter_layers == 4 and status.active_adapters == ["default"] and status.enabled
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    assert all(layer.requires_grad == {"default": True} for layer in model.get_layer_status())


def test_every_factor_appears_once_and_sharing_survives():
    model = get_peft_model(same_net(), aurora_config())
    names = [n for n, _ in model.named_parameters(remove_duplicate=False) if "aurora_" in n]
    assert len(names) == len(set(names)) == 5 + 4
    assert sorted(n for n in model.state_dict() if "aurora_" in n) == sorted(names)

    expected = model(X)
    clone = copy.deepcopy(model)
    assert torch.equal(clone(X), expected)
    with torch.no_grad():
        clone.base_model.aurora_factors["default"].V_8.zero_()
    assert torch.equal(model(X), expected) and not torch.equal(clone(X), expected)
    square = clone.base_model.model.square
    assert square.aurora_factors is clone.base_model.aurora_factors and not square.get_delta_weight("default").any()

    model.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert torch.allclose(model(X.double()).float(), expected, atol=1e-5)
    model.to("meta")
    assert model.base_model.model.up.get_delta_weight("default").device.type == "meta"


def test_modules_to_save_train(net):
    model = get_peft_model(net, aurora_config(modules_to_save=["head"]))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad and "aurora_" not in n}
    assert trainable == {f"base_model.model.head.modules_to_save.default.{n}" for n in ("weight", "bias")}


def test_dtype_of_the_adapter_follows_peft(net):
    model = get_peft_model(net.bfloat16(), aurora_config(), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(X.bfloat16()).dtype == torch.bfloat16


def test_gradient_checkpointing_of_blip(blip, pair):
    model = get_peft_model(blip, AuroraConfig(r=4, init_weights=False)).train()
    grads = []
    for on in (False, True):
        if on:
            checkpoint_layers(blip)
            blip.disable_input_require_grads()  # BLIP adds to its embeddings in place
            assert blip.vision_model.encoder.gradient_checkpointing
        model.zero_grad()
        score(model, pair).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 3
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-6) for n in grads[0])


def test_training_moves_the_adapter_alone(blip, pair):
    model = get_peft_model(blip, AuroraConfig(r=4)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(score(model, pair), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "aurora_" in n}


def test_tiny_blip_is_alive(blip, pair):
    assert blip_config().vision_config.initializer_range == 0.02
    assert score(blip, pair).std() > 0
