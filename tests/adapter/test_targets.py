"""Every model type of the table is adapted by `AuroraConfig` alone, in all of its towers."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from aurora_petl.adapter import AuroraConfig, AuroraLinear
from aurora_petl.adapter.targets import TARGET_MODULES, default_slices, default_targets, suggested_targets
from aurora_petl.errors import AuroraWarning

from .tiny import Net, aurora_config
from .zoo import CASES, GROUPED, HEADS, TEXT, VISION, run

R = 4
DOCS = Path(__file__).parents[2] / "docs" / "adapter.md"


def adapted_layers(model: nn.Module) -> dict[str, AuroraLinear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, AuroraLinear)}


def attentions(model: nn.Module) -> list[str]:
    """Names of the innermost modules that compute attention by linear layers of their own."""
    names = [
        name
        for name, part in model.named_modules()
        if "Attention" in type(part).__name__
        and not any(isinstance(child, nn.MultiheadAttention) for child in part.modules())
        and sum(isinstance(child, (nn.Linear, Conv1D)) for child in part.modules()) > 1
    ]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def number_of_weights(shapes: list[tuple[int, int]], slices: int) -> int:
    """U for each width of inputs and V for each width of outputs, a row of P for each slice, and lambda."""
    inputs, outputs = {shape[1] for shape in shapes}, {shape[0] for shape in shapes}
    return R * (sum(inputs) + sum(outputs) + slices + 1)


def loss_of(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum(output.float().square().sum() for output in outputs)


def test_every_type_has_a_case():
    assert CASES.keys() == TARGET_MODULES.keys()


@pytest.mark.parametrize("model_type", CASES)
def test_default_targets(model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    case = CASES[model_type]
    base = case.model(model_type)
    assert base.config.model_type == model_type
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    with torch.no_grad():
        expected = run(base, case.inputs)
    assert expected and all(output.isfinite().all() for output in expected)
    places = attentions(base)
    attention_slices = 4 if model_type == "phi3" else 3  # two heads of queries for each of keys and values

    model = get_peft_model(base, AuroraConfig(r=R)).eval()
    with torch.no_grad():
        assert all(map(torch.equal, run(model, case.inputs), expected))
    layers = adapted_layers(base)
    slices = {name: len(layer.aurora_P["default"]) for name, layer in layers.items()}
    assert sum(slices.values()) == attention_slices * len(places)
    assert all(any(name.startswith(f"{place}.") for name in layers) for place in places)
    shapes = [(layer.out_features // slices[name], layer.in_features) for name, layer in layers.items()]
    assert model.get_nb_trainable_parameters()[0] == number_of_weights(shapes, sum(slices.values()))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(2):  # U, P and lambda follow V, which starts at 0
        optimizer.zero_grad()
        loss_of(run(model, case.inputs)).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for name, layer in layers.items():  # every slice of every layer had its say
        assert layer.aurora_P["default"].grad.any(1).all(), name
    with torch.no_grad():
        tuned = run(model, case.inputs)
        assert any((output - start).abs().max() > 1e-3 for output, start in zip(tuned, expected, strict=True))
        with model.disable_adapter():
            assert all(map(torch.equal, run(model, case.inputs), expected))
        merged = run(model.merge_and_unload(), case.inputs)
    assert all(torch.allclose(*pair, atol=1e-4, rtol=1e-4) for pair in zip(merged, tuned, strict=True))
    after = base.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {f"{name}.weight" for name in layers}


@pytest.mark.parametrize(
    ("model_type", "weights"),
    [
        ("bert", 16 + 16 + 6),  # U, V and six rows
        ("llama", 16 + (16 + 8) + 6),  # keys and values are half as wide as the queries
        ("qwen3", 16 + (32 + 16) + 6),
        ("phi3", 16 + 8 + 2 * 4),  # of the height of the keys, queries are two slices
        ("clip", (16 + 24) + (16 + 24) + 12),
        ("qwen2_vl", 16 + (16 + 8) + 6 + 6),
    ],
)
@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_number_of_weights(model_type, weights, core):
    model = get_peft_model(CASES[model_type].model(model_type), AuroraConfig(r=R, core=core))
    assert model.get_nb_trainable_parameters()[0] == R * weights + (R if core == "diagonal" else R**3)


def test_docs_name_every_type():
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in TARGET_MODULES if f"`{name}`" not in text] == []


def test_default_targets_by_type():
    assert default_targets("bert") == ["query", "key", "value"]
    assert isinstance(default_targets("gemma4"), str)
    assert default_targets("unknown") is None and default_targets(None) is None and default_targets(["bert"]) is None


@pytest.mark.parametrize(
    ("config", "slices"),
    [
        ({"model_type": "phi3", "num_attention_heads": 40, "num_key_value_heads": 10}, {"qkv_proj": 6}),
        ({"model_type": "phi3", "num_attention_heads": 32, "num_key_value_heads": 32}, {"qkv_proj": 3}),
        ({"model_type": "phi3", "num_attention_heads": 32, "num_key_value_heads": None}, {"qkv_proj": 3}),
        ({"model_type": "phi3", "num_attention_heads": 32}, {"qkv_proj": 3}),
        ({"model_type": "phi3"}, {}),
        ({"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8}, {}),
        ({"model_type": "gpt2"}, {"attn.c_attn": 3, "crossattention.c_attn": 2}),
        (
            {
                "model_type": "llava",
                "text_config": {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2},
            },
            {"qkv_proj": 4},
        ),
        ({}, {}),
    ],
)
def test_default_slices(config, slices):
    assert default_slices(config) == slices


def test_slices_of_fused_layers_are_saved_and_can_be_set(tmp_path):
    model = get_peft_model(CASES["phi3"].model("phi3"), AuroraConfig(r=R))
    model.save_pretrained(tmp_path)
    assert AuroraConfig.from_pretrained(tmp_path).fused_slices == {"qkv": 3, "qkv_proj": 4}
    for table in ({"qkv_proj": 1}, {r".*\.qkv_proj": 1}):
        whole = get_peft_model(CASES["phi3"].model("phi3"), AuroraConfig(r=R, fused_slices=table))
        assert {len(layer.aurora_P["default"]) for layer in adapted_layers(whole).values()} == {1}


def test_grouped_heads_of_a_fused_layer_against_dense_updates():
    """The update of a layer of four slices, three heads' worth of which are queries, keys and values."""
    model = get_peft_model(CASES["phi3"].model("phi3"), AuroraConfig(r=R, init_weights=False))
    factors = model.base_model.aurora_factors["default"]
    for layer in adapted_layers(model).values():
        assert layer.out_features == 4 * 4 + 2 * 4 + 2 * 4
        rows = [factors.V_8 @ torch.diag(factors.lambda_ * row) @ factors.U_16.T for row in layer.aurora_P["default"]]
        assert torch.allclose(layer.get_delta_weight("default"), torch.cat(rows), atol=1e-5)


def test_cross_attention_of_gpt2_stacks_keys_and_values():
    base = GPT2Model(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, add_cross_attention=True)
    )
    get_peft_model(base, AuroraConfig(r=R))
    slices = {name: len(layer.aurora_P["default"]) for name, layer in adapted_layers(base).items()}
    assert slices == {"h.0.attn.c_attn": 3, "h.0.crossattention.c_attn": 2, "h.0.crossattention.q_attn": 1}


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        (["q_proj", "v_proj", "k_proj", "o_proj"], ["q_proj", "k_proj", "v_proj"]),
        (["query", "value", "key"], ["query", "key", "value"]),
        (["qkv", "proj"], ["qkv"]),
        (["q_proj", "v_proj"], None),
        ([], None),
    ],
)
def test_suggested_targets(names, targets):
    assert suggested_targets(names) == targets


def test_types_without_a_default_are_told_what_to_do():
    class NewConfig(LlamaConfig):
        model_type = "new_model"

    base = LlamaForCausalLM(NewConfig(**GROUPED))
    with pytest.raises(ValueError) as error:
        get_peft_model(base, AuroraConfig(r=R))
    words = ["`target_modules`", "'new_model'", "docs/adapter.md", "may be ['q_proj', 'k_proj', 'v_proj']"]
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert not adapted_layers(base)
    assert len(adapted_layers(get_peft_model(base, AuroraConfig(r=R, target_modules=["q_proj"])))) == 2


def test_no_suggestion_where_no_name_is_known():
    net = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"Please specify `target_modules`\.$"):
        get_peft_model(net, AuroraConfig(r=R))


def test_layers_to_transform_needs_names():
    with pytest.raises(ValueError, match="`layers_to_transform`.*'gemma4'.*regex"):
        get_peft_model(CASES["gemma4"].model("gemma4"), AuroraConfig(r=R, layers_to_transform=[0]))
    model = get_peft_model(CASES["llama"].model("llama"), AuroraConfig(r=R, layers_to_transform=[0]))
    assert {name.split(".")[4] for name in adapted_layers(model)} == {"0"}


# "all-linear"


@pytest.mark.parametrize("model_type", ["siglip", "siglip2_vision_model", "gemma3"])
def test_all_linear_leaves_out_pooling_heads(model_type):
    case = CASES[model_type]
    base = case.model(model_type)
    linear = {name for name, part in base.named_modules() if type(part) is nn.Linear and name != "lm_head"}
    head = {name for name, part in base.named_modules() if isinstance(part, nn.MultiheadAttention)}
    assert len(head) == 1
    with torch.no_grad():
        expected = run(base, case.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AuroraWarning)
        model = get_peft_model(base, AuroraConfig(r=R, target_modules="all-linear")).eval()
    assert set(adapted_layers(base)) == linear
    with torch.no_grad():
        assert all(map(torch.equal, run(model, case.inputs), expected))


def test_a_pooling_head_in_a_list_is_refused_with_the_way_out():
    base, name = CASES["siglip"].model("siglip"), "vision_model.head.attention.out_proj"
    with pytest.raises(ValueError, match=f"{name}.*MultiheadAttention.*add '{name}' to `exclude_modules`"):
        get_peft_model(base, AuroraConfig(r=R, target_modules=["q_proj", "out_proj"]))
    assert not adapted_layers(base)
    model = get_peft_model(base, AuroraConfig(r=R, target_modules=["q_proj", "out_proj"], exclude_modules=[name]))
    assert len(adapted_layers(model)) == 2 * 2 * 2


def test_all_linear_tells_of_other_layers_that_it_leaves_out(net):
    eight_bit = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    net.square.weight, net.attention = eight_bit, nn.MultiheadAttention(8, 2)
    with pytest.warns(AuroraWarning, match="leaves out 1 of 6 layers.*type Linear, square among them"):
        model = get_peft_model(net, aurora_config(target_modules="all-linear"))
    assert set(adapted_layers(net)) == {"qkv", "up", "down", "head"}
    assert "square" not in model.peft_config["default"].target_modules


def test_excluded_layers_are_not_told_of(net):
    net.square.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AuroraWarning)
        get_peft_model(net, aurora_config(target_modules="all-linear", exclude_modules=["square"]))


def test_all_linear_of_nothing_but_quantised_layers_is_refused():
    net = Net()
    for part in net.children():
        part.weight = nn.Parameter(part.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match="qkv is quantised .*without quantisation"):
        get_peft_model(net, aurora_config(target_modules="all-linear"))


def test_sizes_of_the_cases_tell_the_towers_apart():
    assert VISION["hidden_size"] != TEXT["hidden_size"]
    assert GROUPED["num_key_value_heads"] < GROUPED["num_attention_heads"]
    assert HEADS["head_dim"] * HEADS["num_attention_heads"] != HEADS["hidden_size"]
