"""What each method trains, and that exactly this is saved and found again."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_petl.adapter import adapter_size
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import METHODS, WEIGHTS, apply_method, find_method, load_adapter, save_adapter
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation.features import tokenize

LAYERS = [(192, 576)] * 6 + [(192, 192)] * 4 * 6  # blip-mini's: a fused one a vision layer, six a text layer
HEADS = 2 * (192 * 128 + 128) + (192 * 2 + 2) + 1  # two projections, the ITM head, the temperature
R = 4
ROWS = sum(out for _, out in LAYERS)
LORA = R * sum(into + out for into, out in LAYERS)
ADAPTER = {
    "aurora": adapter_size([(into, out, out // 192) for into, out in LAYERS], R),
    "lora": LORA,
    "dora": LORA + ROWS,  # a magnitude for every row
    "vera": ROWS + R * len(LAYERS),  # its two vectors a layer
}
# vera warns at every save and load that its projections follow from their seed
pytestmark = pytest.mark.filterwarnings("ignore:Specified to not")


def options(method):
    return {"r": R} if METHODS[method].config else {}


def trainable(backbone):
    return {name: weight for name, weight in backbone.module.named_parameters() if weight.requires_grad}


def shaken(method, train_heads=True):
    """A backbone with every weight that the method trains moved off its start."""
    backbone = load_backbone("blip-mini")
    apply_method(backbone, method, options(method), train_heads)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in trainable(backbone).values():
            weight.add_(0.02 * torch.randn_like(weight))
    return backbone


@torch.no_grad()
def outputs(backbone):
    """What tasks read: unit vectors of both towers, match logits, temperature."""
    backbone.module.eval()
    torch.manual_seed(1)
    tokens = tokenize(backbone, ["a red apple", "a dog"], 35).values()
    states = backbone.encode_image(torch.randn(2, 3, backbone.image_size, backbone.image_size))
    text = backbone.project_text(backbone.encode_text(*tokens))
    parts = backbone.project_image(states), text, backbone.match(*tokens, states), backbone.temperature()
    return torch.cat([part.flatten() for part in parts])


# Applying


@pytest.mark.parametrize("method", METHODS)
def test_what_trains(method, backbone):
    whole = {name: weight.numel() for name, weight in backbone.model.named_parameters()}
    pretrained = outputs(backbone)
    apply_method(backbone, method, options(method))
    assert torch.allclose(outputs(backbone), pretrained, atol=1e-4)  # every method begins as the pretrained model
    found = {name: weight.numel() for name, weight in trainable(backbone).items()}
    if method in ADAPTER:
        marks = {"dora": "lora_"}.get(method, f"{method}_")
        of_adapter = {name: size for name, size in found.items() if marks in name}
        assert sum(of_adapter.values()) == ADAPTER[method]
        heads = {name: size for name, size in found.items() if name not in of_adapter}
        assert all(".modules_to_save.default." in name for name in heads)
        assert backbone.module is backbone.adapter
    else:
        assert backbone.adapter is None
        heads = {name: size for name, size in found.items() if name.split(".")[0] in backbone.heads}
        assert set(found) == {"full": set(whole), "heads": set(heads), "zero-shot": set()}[method]
    assert sum(heads.values()) == (0 if method == "zero-shot" else HEADS)
    assert {part for name in heads for part in name.split(".") if part in backbone.heads} == (
        set() if method == "zero-shot" else set(backbone.heads)
    )


@pytest.mark.parametrize("method", ADAPTER)
def test_heads_may_stay_frozen(method, backbone):
    apply_method(backbone, method, options(method), train_heads=False)
    assert sum(weight.numel() for weight in trainable(backbone).values()) == ADAPTER[method]


def test_methods_own_options_are_kept(backbone):
    given = {"r": 2, "target_modules": ["qkv"], "modules_to_save": ["itm_head"]}
    apply_method(backbone, "lora", given)
    assert sum(weight.numel() for weight in trainable(backbone).values()) == 6 * 2 * (192 + 576) + 386
    assert given == {"r": 2, "target_modules": ["qkv"], "modules_to_save": ["itm_head"]}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("lorra", {}, "no method 'lorra'; choose one of aurora, lora, dora, vera, heads, full, zero-shot"),
        ("heads", {"r": 4, "alpha": 1}, "method heads takes no method_options, got r, alpha"),
        ("full", {"r": 4}, "method full takes no method_options, got r"),
        ("aurora", {"r": 0}, "method_options.r is 0; it must lie between 1 and 8192"),
        ("aurora", {"rank": 4}, "method aurora has no method_options.rank; there are context, core, dropout, "),
        ("aurora", {"target_modules": ["zzz"]}, r"method aurora refuses method_options: .*\['zzz'\] matched no module"),
        ("lora", {"r": 0}, "method_options.r is 0; it must lie between 1 and 8192"),
        ("dora", {"use_dora": False}, "method dora refuses method_options: .*use_dora"),
    ],
)
def test_refused_methods_and_options(method, given, message, backbone):
    with pytest.raises(AuroraError, match=message):
        apply_method(backbone, method, given)
    assert backbone.adapter is None


def test_methods_say_what_they_are():
    assert all(method.about for method in METHODS.values())
    assert find_method("full") is METHODS["full"]


# Saving and loading


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_computes_the_same(method, tmp_path, backbone):
    ours = shaken(method)
    expected, pretrained = outputs(ours), outputs(backbone)
    save_adapter(ours, tmp_path / "adapter")
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
    load_adapter(backbone, tmp_path / "adapter", method)
    assert torch.allclose(outputs(backbone), expected, atol=1e-6)
    assert not trainable(backbone)
    assert (method == "zero-shot") == torch.allclose(expected, pretrained, atol=1e-3)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full"}))
def test_only_what_trained_is_saved(method, tmp_path):
    backbone = shaken(method)
    save_adapter(backbone, tmp_path / "adapter")
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    saved = load_file(file)
    assert sum(value.numel() for value in saved.values()) == sum(w.numel() for w in trainable(backbone).values())


def test_an_adapter_without_heads(tmp_path, backbone):
    ours = shaken("aurora", train_heads=False)
    save_adapter(ours, tmp_path / "adapter")
    assert not torch.allclose(outputs(backbone), outputs(ours), atol=1e-4)
    load_adapter(backbone, tmp_path / "adapter", "aurora")
    assert torch.equal(outputs(backbone), outputs(ours))


def test_an_adapter_with_context_and_gates_stays_small(tmp_path, backbone):
    apply_method(backbone, "aurora", {"r": 64, "context": "batch", "gate": "scale_shift"})
    save_adapter(backbone, tmp_path / "adapter")
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir()) < 500_000


def test_saving_asks_the_hub_nothing_and_warns_of_nothing(tmp_path):
    backbone = shaken("aurora")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's, when it looks for blip-mini on the hub
        save_adapter(backbone, tmp_path / "adapter")


def test_an_existing_folder_is_kept(tmp_path, backbone):
    apply_method(backbone, "heads")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(AuroraError, match="adapter exists already"):
        save_adapter(backbone, tmp_path / "adapter")
    assert [path.relative_to(tmp_path).name for path in tmp_path.rglob("*")] == ["adapter"]


@pytest.mark.parametrize(("method", "name"), [("lora", "adapter_model.safetensors"), ("full", WEIGHTS)])
def test_nothing_saved(method, name, tmp_path, backbone):
    with pytest.raises(AuroraError) as caught:
        load_adapter(backbone, tmp_path, method)
    assert str(caught.value) == f"{tmp_path} has no {name}; the run did not finish, continue it with --resume"


def test_loading_by_an_unknown_method(tmp_path, backbone):
    with pytest.raises(AuroraError, match="no method 'lorra'"):
        load_adapter(backbone, tmp_path, "lorra")


def refusal(folder, method):
    with pytest.raises(AuroraError) as caught:
        load_adapter(load_backbone("blip-mini"), folder, method)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("method", ["aurora", "lora", "heads"])
def test_files_that_are_broken_or_of_another_model(method, tmp_path):
    save_adapter(shaken(method), tmp_path / "adapter")
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in state if "vision_proj" in name and "weight" in name)
    save_file({**state, name: torch.zeros(7, 5)}, file)
    message = refusal(tmp_path / "adapter", method)
    assert message.startswith(f"{file} is broken or of another model than blip-mini: size mismatch for ")
    assert "[7, 5]" in message and "[128, 192]" in message
    file.write_bytes(file.read_bytes()[:1000])
    assert refusal(tmp_path / "adapter", method).startswith(f"{file} is broken or of another model than blip-mini: ")


def test_weights_that_the_model_does_not_have(tmp_path):
    save_file({"text_decoder.bias": torch.zeros(3)}, tmp_path / WEIGHTS)
    message = refusal(tmp_path, "full")
    assert message == f"{tmp_path / WEIGHTS} is of another model: text_decoder.bias has no place in blip-mini"
