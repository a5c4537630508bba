"""What users do around an adapted model: many adapters at once, checkpointing, Trainer, pickling, nesting."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    save_as_lora,
    set_peft_model_state_dict,
)
from peft.functional import delete_adapter, set_adapter
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones import checkpoint_layers

from .tiny import SPLIT, Net, aurora_config

X = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(5))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def pair_of_adapters(net) -> PeftModel:
    """`default` on every layer, `second` with slices on two layers; each with a head of its own."""
    model = get_peft_model(net, aurora_config(modules_to_save=["head"]))
    model.add_adapter(
        "second", aurora_config(r=3, core="full", target_modules=["up", "down"], modules_to_save=["head"], **SPLIT)
    )
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.mul_(2)
    return model.eval()


def test_one_batch_of_several_adapters(pair_of_adapters):
    model, expected = pair_of_adapters, {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = model(X)
    with model.disable_adapter():
        expected["__base__"] = model(X)
    model.set_adapter("default")

    names = ["second", "default", "__base__", "second"]
    y = model(X, adapter_names=names)
    for item, name in enumerate(names):
        assert torch.allclose(y[item], expected[name][item], atol=1e-6), name
    # nothing stays behind
    assert torch.equal(model(X), expected["default"])
    with model.disable_adapter():
        assert torch.equal(model(X, adapter_names=names), expected["__base__"])


def test_errors_of_adapter_names(pair_of_adapters):
    model = pair_of_adapters
    expected = model(X)
    with pytest.raises(ValueError, match="should be the same as the number of inputs, but got 3 and 4 "):
        model(X, adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): third.*'default', 'second'.*'__base__'"):
        model(X, adapter_names=["default"] * 3 + ["third"])
    with pytest.raises(ValueError, match="num_beams=1"):
        model.generate(X, adapter_names=["default"] * 4, num_beams=2)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        model.train()(X, adapter_names=["default"] * 4)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model(X, adapter_names=["default"] * 4)
    model.unmerge_adapter()
    assert torch.allclose(model(X), expected, atol=1e-6)


def test_gradients_follow_the_active_adapter(pair_of_adapters):
    model = pair_of_adapters
    default, second = ({n for n, _ in model.named_parameters() if name in n} for name in ("default", "second"))
    assert len(default) == 5 + 4 + 2 and len(second) == 5 + 2 + 2  # factors, rows, head
    assert trainable(model) == default
    model.set_adapter("second")
    assert trainable(model) == second
    model.set_adapter("default", inference_mode=True)
    assert not trainable(model)
    model.set_requires_grad("second")
    assert trainable(model) == second
    model.set_adapter("default")
    with model.disable_adapter():
        assert not trainable(model)
    assert trainable(model) == default
    available = {status.name: status.available_adapters for status in model.get_layer_status()}
    assert available["model.qkv"] == ["default"] and available["model.up"] == ["default", "second"]


def test_inference_mode(net):
    assert not trainable(get_peft_model(net, aurora_config(inference_mode=True)))


@pytest.mark.parametrize("names", [["second"], ["default", "second"]])
def test_merging_chosen_adapters(pair_of_adapters, names):
    model = pair_of_adapters
    layer = model.base_model.model.down
    weight = layer.base_layer.weight + sum(layer.get_delta_weight(name) for name in names)
    merged = model.merge_and_unload(safe_merge=True, adapter_names=names)
    assert type(merged.down) is nn.Linear and torch.allclose(merged.down.weight, weight, atol=1e-6)


def test_unloading_a_merged_model_keeps_the_merge(net):
    model = get_peft_model(net, aurora_config())
    expected = model(X)
    model.merge_adapter()
    assert torch.allclose(model.unload()(X), expected, atol=1e-5)


def test_deleting_every_adapter_leaves_the_base(net):
    expected = net(X)
    model = get_peft_model(net, aurora_config())
    model.add_adapter("second", aurora_config(target_modules=["up"]))
    model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    model.delete_adapter("default")
    assert torch.equal(model.base_model(X), expected)
    assert not any("aurora_" in name for name in model.state_dict())
    assert not model.base_model.model.up.aurora_split


def test_two_adapters_from_disk(tmp_path, pair_of_adapters):
    expected = {}
    for name in ("default", "second"):
        pair_of_adapters.set_adapter(name)
        expected[name] = pair_of_adapters(X)
    pair_of_adapters.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(Net().eval(), tmp_path / "second", adapter_name="a")
    model.load_adapter(tmp_path, adapter_name="b")
    for name, saved in (("a", "second"), ("b", "default"), ("a", "second")):
        model.set_adapter(name)
        assert torch.equal(model(X), expected[saved])
    model.set_adapter("a")
    model.load_adapter(tmp_path / "second", adapter_name="a")  # again, over itself
    assert torch.equal(model(X), expected["second"])


def test_becomes_a_lora(tmp_path, net):
    """dW of every layer has rank R at most, so a LoRA of that rank holds all of it."""
    model = get_peft_model(net, aurora_config(**SPLIT))
    expected = model(X)
    save_as_lora(tmp_path, model, rank=4)
    torch.manual_seed(0)
    lora = PeftModel.from_pretrained(Net().eval(), tmp_path)
    assert isinstance(lora.peft_config["default"], LoraConfig)
    assert torch.allclose(lora(X), expected, atol=1e-5)


def test_injection_without_a_tuner(net):
    """The model itself has all weights of the adapter, by the names that a `PeftModel` gives them."""
    base = copy.deepcopy(net)(X)
    model = inject_adapter_in_model(aurora_config(), net)
    assert model is net and not torch.equal(net(X), base)
    names = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert all("aurora_" in name for name in names) and "aurora_factors.default.U_8" in names
    state = get_peft_model_state_dict(net)
    assert set(state) == {name.replace(".default", "") for name in names}
    torch.manual_seed(1)
    wrapped = get_peft_model(Net().eval(), aurora_config())
    assert {f"base_model.model.{name}" for name in state} == set(get_peft_model_state_dict(wrapped))
    torch.manual_seed(0)
    for prefix in ("", "base_model.model."):
        other = inject_adapter_in_model(aurora_config(), Net().eval(), low_cpu_mem_usage=bool(prefix))
        weights = {prefix + name: weight for name, weight in state.items()}
        result = set_peft_model_state_dict(other, weights, low_cpu_mem_usage=bool(prefix))
        assert not result.unexpected_keys and not any("aurora_" in name for name in result.missing_keys)
        other.load_state_dict({n: w for n, w in net.state_dict().items() if "aurora_" not in n}, strict=False)
        assert torch.equal(other(X), net(X))
    with pytest.raises(ValueError, match="lambda_.* is missing"):
        set_peft_model_state_dict(net, {n: w for n, w in state.items() if "lambda_" not in n})


def test_a_second_injection_shares_the_place(net):
    inject_adapter_in_model(aurora_config(), net)
    first = net(X)
    with pytest.warns(UserWarning, match="multiple adapters"):
        inject_adapter_in_model(aurora_config(r=2, target_modules=["up"]), net, "second")
    assert set(net.aurora_factors) == {"default", "second"} == set(net.peft_config)
    second = net(X)
    set_adapter(net, "default")
    assert torch.equal(net(X), first) and not torch.equal(second, first)
    assert not any("second" in name for name, weight in net.named_parameters() if weight.requires_grad)
    for words, fields in (("has an adapter 'second'", {}), ("matched no module", {"target_modules": ["nothing"]})):
        with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=words):
            inject_adapter_in_model(aurora_config(**fields), net, "third" if fields else "second")
        assert set(net.peft_config) == {"default", "second"} and net.peft_config["second"].r == 2
    delete_adapter(net, "second", prefix="aurora_")
    assert set(net.aurora_factors) == {"default"} and torch.equal(net(X), first)


def test_a_sequential_model_goes_on_working():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    base = net(X)
    model = get_peft_model(net, aurora_config(target_modules=["0"]))
    y = model(X)
    assert y.shape == base.shape and not torch.equal(y, base)
    unloaded = model.unload()
    assert len(unloaded) == 3 and torch.equal(unloaded(X), base)


def test_pickle_and_torch_save(tmp_path, net):
    model = get_peft_model(net, aurora_config(**SPLIT))
    torch.save(model, tmp_path / "model.pt")
    for clone in (pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(clone(X), model(X))
        assert clone.base_model.model.up.aurora_factors is clone.base_model.aurora_factors
        assert trainable(clone) == trainable(model)


def test_inside_another_module(tmp_path, net):
    """safetensors refuses tensors that appear twice, so every shared factor is saved once."""
    outer = nn.ModuleDict({"inner": get_peft_model(net, aurora_config())})
    save_model(outer, tmp_path / "outer.safetensors")
    other = nn.ModuleDict({"inner": get_peft_model(Net().eval(), aurora_config())})
    assert not torch.allclose(other["inner"](X), outer["inner"](X))
    load_model(other, tmp_path / "outer.safetensors")
    assert torch.equal(other["inner"](X), outer["inner"](X))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_clip(reentrant):
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(**small, image_size=16, patch_size=8)
    text = dict(**small, vocab_size=50, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    batch = dict(input_ids=torch.randint(3, 50, (2, 5)), pixel_values=torch.randn(2, 3, 16, 16))
    model = get_peft_model(clip, AuroraConfig(r=4, init_weights=False, target_modules=["q_proj", "v_proj", "fc1"]))
    model.train()
    grads = []
    for on in (False, True):
        if on:
            checkpoint_layers(clip, reentrant)
            clip.enable_input_require_grads()
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters() if "aurora_" in name})
    assert all(grad is not None and grad.any() for grad in grads[0].values())
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


class Task(Net):
    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(super().forward(x).mean(1), labels)}


def test_trainer_saves_and_resumes(tmp_path):
    data = [{"x": x, "labels": torch.tensor(i % 3)} for i, x in enumerate(torch.randn(8, 9, 8))]

    def train(folder, **resume) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(Task(), aurora_config(dropout=0.2, **SPLIT))
        settings = dict(max_steps=4, save_steps=2, per_device_train_batch_size=2, learning_rate=0.01)
        settings |= dict(use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False)
        trainer = Trainer(model, TrainingArguments(str(tmp_path / folder), **settings), train_dataset=data)
        trainer.train(**resume)
        return {n: p.detach() for n, p in model.named_parameters() if "aurora_" in n}

    whole = train("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    resumed = train("resumed", resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
