"""What peft promises of every method, over the models of `cases.py`, and on the meta device."""

import copy
import pickle
import warnings

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from aurora_petl.adapter import AuroraLinear
from aurora_petl.adapter.additions import additions
from aurora_petl.adapter.attention import AuroraAttention

from .cases import CASES, Attended, Case

RELEASED_CONTEXT = "cannot be folded into weights"


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def adapted(case: Case, name: str = "default", **fields) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(case.base(), case.config(**fields), adapter_name=name).eval()
    for _, _, addition in additions(model):
        for buffer in addition.buffers():
            buffer.normal_()
    return model


def layers_of(model: nn.Module) -> dict[str, AuroraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AuroraLinear)}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def dense(case: Case, model: PeftModel, *adapters: str) -> torch.Tensor:
    """What the base computes with W + dW in the place of every adapted W."""
    weights = {}
    for name, layer in layers_of(model.base_model.model).items():
        weight = "in_proj_weight" if isinstance(layer, AuroraAttention) else "weight"
        place = f"{name}.{weight}".replace(".base_layer.", ".")  # the output layer of an attention lies in it
        weights[place] = layer.frozen_weight + sum(map(layer.get_delta_weight, adapters or ["default"]))
    shell = nn.Module()
    shell.forward = lambda **more: case.run(shell.base, **more)
    shell.base = case.base()
    return functional_call(shell, {f"base.{name}": weight for name, weight in weights.items()}, ())


def has_additions(model: nn.Module) -> bool:
    return any(addition.aurora_form for _, _, addition in additions(model))


def close(x: torch.Tensor, y: torch.Tensor, atol: float = 1e-5) -> bool:
    return torch.allclose(x, y, atol=atol, rtol=1e-4)


def test_start_is_the_base_to_the_bit(case):
    if "released" in case.fields.values():
        pytest.skip("the released gates do not start at 0")
    with torch.no_grad():  # products of activations may order their sums by whether a gradient is wanted
        expected = case.run(case.base())
        model = adapted(case, init_weights=True)
        assert case.same(case.run(model), expected) and case.same(case.run(model.train()), expected)


def test_forward_and_gradients(case):
    model = adapted(case)
    y = case.run(model)
    base = case.run(case.base())
    assert y.shape == base.shape and y.dtype == base.dtype and y.isfinite().all()
    assert not torch.allclose(y, base, atol=1e-4)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * probe).sum().backward()
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)
    names = set(trained(model))
    assert names and all("aurora_" in name for name in names)
    assert all(weight.grad is not None and weight.grad.any() for weight in trained(model).values())
    if not has_additions(model):
        expected = dense(case, model)
        assert close(y, expected)
        gradients = torch.autograd.grad((expected * probe).sum(), list(trained(model).values()))
        for (name, weight), gradient in zip(trained(model).items(), gradients, strict=True):
            assert (weight.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_a_step_moves_the_adapter_alone(case):
    model = adapted(case, modules_to_save=[case.head]).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    case.run(model).square().mean().backward()
    torch.optim.SGD(trained(model).values(), lr=1.0).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("aurora_" in name or f"{case.head}.modules_to_save.default" in name for name in moved)
    assert any("modules_to_save" in name for name in moved)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded(tmp_path, case, low_cpu_mem_usage):
    model = adapted(case, modules_to_save=[case.head])
    with torch.no_grad():
        for weight in model.get_submodule(f"base_model.model.{case.head}").modules_to_save["default"].parameters():
            weight.mul_(1.5)
    expected = case.run(model)
    with warnings.catch_warnings(action="error", category=UserWarning):
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(case.base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert case.same(case.run(loaded), expected) and not trained(loaded)
        result = loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.missing_keys and not result.unexpected_keys
    loaded.set_adapter("again")
    assert case.same(case.run(loaded), expected)


def test_state_dict_round_trip(case):
    model, other = adapted(case, modules_to_save=[case.head]), adapted(case, modules_to_save=[case.head])
    with torch.no_grad():
        for weight in trained(model).values():
            weight.add_(0.1)
    with warnings.catch_warnings(action="error", category=UserWarning):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys and not any("aurora_" in key for key in result.missing_keys)
    assert case.same(case.run(other), case.run(model))
    assert all("default" not in name for name in state)


@pytest.mark.filterwarnings(f"ignore:.*{RELEASED_CONTEXT}")
def test_merging(case):
    model = adapted(case)
    expected, base = case.run(model), case.run(case.base())
    model.merge_adapter(safe_merge=True)
    assert close(case.run(model), expected)
    with pytest.warns(UserWarning, match="already merged, nothing to do"):
        model.merge_adapter()
    assert close(case.run(model), expected)
    model.unmerge_adapter()
    assert close(case.run(model), expected)
    model.merge_adapter()
    with model.disable_adapter():
        assert close(case.run(model), base)
    assert close(case.run(model), expected)
    model.unmerge_adapter()
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert not layers_of(merged) and close(case.run(merged), expected)
    with pytest.raises(
        ValueError, match=r"^NaNs detected in the merged weights\. The adapter default seems to be broken"
    ):
        with torch.no_grad():
            next(iter(layers_of(model).values())).aurora_P["default"][0, 0] = float("nan")
        model.merge_adapter(safe_merge=True)


def test_unloading_gives_the_base_to_the_bit(case):
    base = case.base()
    model = adapted(case, modules_to_save=[case.head])
    with model.disable_adapter(), torch.no_grad():
        assert case.same(case.run(model), case.run(base))
    unloaded = model.unload()
    state = base.state_dict()
    assert type(unloaded) is type(base) and unloaded.state_dict().keys() == state.keys()
    same = {name for name, value in unloaded.state_dict().items() if torch.equal(value, state[name])}
    assert same == set(state) and case.same(case.run(unloaded), case.run(base))


def test_adding_switching_deleting(case):
    model = adapted(case)
    first = case.run(model)
    torch.manual_seed(2)
    model.add_adapter("second", case.config(r=3))
    assert case.same(case.run(model), first) and not any("second" in name for name in trained(model))
    model.set_adapter("second")
    second = case.run(model)
    assert not torch.allclose(first, second, atol=1e-4)
    assert trained(model) and all(".second" in name for name in trained(model))
    model.set_adapter("default", inference_mode=True)
    assert case.same(case.run(model), first) and not trained(model)
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("second")
    assert model.active_adapter == "default" and case.same(case.run(model), first)
    assert not any("second" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("third")


def test_mixed_batches(case):
    if case.make is Attended:
        with pytest.raises(TypeError, match=r"MultiheadAttention does not support mixed adapter batches"):
            case.run(adapted(case), adapter_names=["default"] * 4)
        return
    model, expected = adapted(case, modules_to_save=[case.head]), {}
    torch.manual_seed(2)
    model.add_adapter("second", case.config(r=3, modules_to_save=[case.head]))
    head = model.get_submodule(f"base_model.model.{case.head}")
    with torch.no_grad():
        for weight in head.modules_to_save["second"].parameters():
            weight.mul_(-1)
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = case.run(model)
    model.set_adapter("default")
    with model.disable_adapter():
        expected["__base__"] = case.run(model)
    names = ["second", "default", "__base__", "second"]
    if case.head == "visual_projection":  # of pictures and texts alike, every text with every picture
        names = ["second"] * 4
    y = case.run(model, adapter_names=names)
    for item, name in enumerate(names):
        assert close(y[item], expected[name][item]), name
    with pytest.raises(
        ValueError, match="Length of `adapter_names` should be the same as the number of inputs, but got"
    ):
        case.run(model, adapter_names=names[:3])
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        case.run(model.train(), adapter_names=names)
    with pytest.raises(ValueError, match=r"Trying to infer with non-existing adapter\(s\): neither, nor"):
        case.run(model.eval(), adapter_names=["nor", "neither", "default", "second"])
    with warnings.catch_warnings(action="ignore"):
        model.base_model.merge_adapter()
    with pytest.raises(ValueError, match="when there are merged adapters, please call `unmerge_adapter` first"):
        case.run(model, adapter_names=names)


def test_several_active_adapters(case):
    model = adapted(case)
    torch.manual_seed(2)
    model.add_adapter("second", case.config(r=3, core="full", gate=None, context=None))
    model.base_model.set_adapter(["default", "second"])
    y = case.run(model)
    assert {name.split("default")[0] != name for name in trained(model)} == {True, False}
    if not has_additions(model):
        assert close(y, dense(case, model, "default", "second"))
    with warnings.catch_warnings(action="ignore"):
        model.merge_adapter()
    assert close(case.run(model), y)
    model.unmerge_adapter()
    assert close(case.run(model), y)


def test_copies(case):
    model = adapted(case, modules_to_save=[case.head])
    expected, names = case.run(model), set(trained(model))
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert case.same(case.run(clone), expected) and set(trained(clone)) == names
        with torch.no_grad():
            for weight in trained(clone).values():
                weight.zero_()
        assert not case.same(case.run(clone), expected)
    assert case.same(case.run(model), expected)
    assert "aurora.Aurora" in repr(model) and "AuroraFactors" in repr(model)


def test_offloaded_by_accelerate(case):
    model = adapted(case)
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        pytest.skip("its output layer is never called, so that accelerate brings its weight back for no one")
    expected = case.run(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    model.register_parameter("here", nn.Parameter(torch.zeros(1)))  # `case` sends its inputs where the first weight is
    assert close(case.run(model), expected)


def test_functional_call(case):
    shell = nn.Module()
    shell.forward = lambda: case.run(shell.model)
    shell.model = adapted(case)
    weights = {name: weight.detach() + 0 for name, weight in shell.named_parameters()}
    assert case.same(functional_call(shell, weights, ()), case.run(shell.model))


def test_checkpointing(case):
    model, gradients = adapted(case).train(), []
    for run in (case.run, lambda model: checkpoint(case.run, model, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(3)
        for _, _, addition in additions(model):
            for buffer in addition.buffers():
                buffer.fill_(0.5)
        run(model).square().sum().backward()
        gradients.append([weight.grad for weight in trained(model).values()])
    assert all(map(case.same, *gradients))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_transformers(case, reentrant):
    model = adapted(case).train()
    if not isinstance(model.base_model.model, PreTrainedModel) or (case.head == "itm_head" and reentrant):
        pytest.skip("none of theirs, or BLIP, which adds to its embeddings in place")
    case.run(model).square().sum().backward()
    expected = {name: weight.grad.clone() for name, weight in trained(model).items()}
    model.zero_grad()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if not reentrant:
        model.base_model.model.disable_input_require_grads()
    case.run(model).square().sum().backward()
    assert all(close(weight.grad, expected[name]) for name, weight in trained(model).items())


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(case, dtype, cast):
    torch.manual_seed(1)
    model = get_peft_model(case.base().to(dtype), case.config(), autocast_adapter_dtype=cast).eval()
    wide = torch.float32 if cast and dtype.itemsize == 2 else dtype
    assert {weight.dtype for weight in trained(model).values()} == {wide}
    y = case.run(model)
    assert y.dtype == case.run(case.base().to(dtype)).dtype and y.isfinite().all()
    y.sum().backward()
    assert all(weight.grad.dtype == wide for weight in trained(model).values() if weight.grad is not None)


def test_on_the_meta_device(case, monkeypatch):
    """Nothing of the adapter in a step looks at a value, and nothing of it stays on the CPU."""
    look = "transformers.masking_utils._ignore_bidirectional_mask_sdpa"  # theirs looks whether a mask masks anything
    monkeypatch.setattr(look, lambda *args, **kwargs: False, raising=False)
    # and, in older releases, whether tokens are padding
    monkeypatch.setattr(PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *_: None, raising=False)
    model = adapted(case, modules_to_save=[case.head]).to("meta").train()
    y = case.run(model)
    assert y.device.type == "meta"
    y.sum().backward()
    assert all(weight.grad.device.type == "meta" for weight in trained(model).values() if weight.grad is not None)
    model.eval()
    assert case.run(model).device.type == "meta"
    model.add_adapter("second", case.config(r=2, modules_to_save=[case.head]))
    names = ["second", "default", "__base__", "second"]
    assert case.make is Attended or case.run(model, adapter_names=names).device.type == "meta"
    with warnings.catch_warnings(action="ignore"):
        assert case.run(model.merge_and_unload()).device.type == "meta"


@pytest.mark.parametrize("whole", [False, True], ids=["weight", "layer"])
def test_weights_that_others_use(whole):
    """An update is the layer's own; merging would add it to whatever else uses the weight, under another name."""
    case = CASES["widths"]
    base = case.base()
    base.other = nn.Linear(8, 8)
    base.other.weight = base.square.weight
    if whole:
        base.other = base.square
    model = get_peft_model(base, case.config(target_modules=["square"])).eval()
    expected = case.run(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="square shares its weight with another layer"):
            merge()
    assert case.same(case.run(model), expected)


def test_compiles():
    case = CASES["mlp"]
    model = adapted(case)
    torch.compiler.reset()
    assert close(case.run(torch.compile(model, backend="eager", fullgraph=True)), case.run(model))
