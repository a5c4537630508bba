"""What each method trains, and that exactly this is saved and found again."""

import copy
import errno
import json
import os
import re
import stat
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aurora_petl.adapter import adapter_size
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import WEIGHTS, apply_method, load_adapter, save_adapter
from aurora_petl.errors import AuroraError
from aurora_petl.methods import METHODS, find_method

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
    texts = backbone.texts(["a red apple", "a dog"], 35)
    image = backbone.encode_image(torch.randn(2, 3, backbone.image_size, backbone.image_size))
    text = backbone.encode_text(texts).feature
    parts = image.feature, text, backbone.match(texts, image.states), backbone.model.temperature()
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
        ("lorra", {}, "no method 'lorra'; did you mean lora"),
        ("heads", {"r": 4, "alpha": 1}, "method heads takes no method_options, got r, alpha"),
        ("full", {"r": 4}, "method full takes no method_options, got r"),
        ("aurora", {"r": 0}, "method_options.r is 0; it must lie between 1 and 8192"),
        ("aurora", {"rank": 4}, "method aurora has no field method_options.rank; fields are r, target_modules, "),
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


@pytest.mark.parametrize("method", ["aurora", "lora"])
@pytest.mark.parametrize("bias", ["all", "only"])
def test_biases_that_train_are_saved(method, bias, tmp_path, backbone):
    ours = load_backbone("blip-mini")
    apply_method(ours, method, {"bias": bias if bias == "all" else f"{method}_only", "r": 4})
    biases = [name for name in trainable(ours) if name.endswith(".base_layer.bias")]
    assert biases
    with torch.no_grad():
        for weight in trainable(ours).values():
            weight.add_(0.01)
    save_adapter(ours, tmp_path / "adapter")
    load_adapter(backbone, tmp_path / "adapter", method)
    own, loaded = (dict(one.module.named_parameters()) for one in (ours, backbone))
    assert all(torch.equal(loaded[name], weight) for name, weight in own.items())


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


def refusal(folder, method, fresh=None):
    with pytest.raises(AuroraError) as caught:
        load_adapter(copy.deepcopy(fresh) if fresh else load_backbone("blip-mini"), folder, method)
    message = str(caught.value)
    assert "\n" not in message
    return message


def lacking(state):
    state.pop(max(state))


def surplus(state):
    state["text_decoder.bias"] = torch.zeros(3)


def misshapen(state):
    state[next(name for name in state if name.endswith("vision_proj.weight"))] = torch.zeros(7, 5)


def not_a_number(state):
    state[max(state)] = torch.full_like(state[max(state)], torch.nan)


def whole_numbers(state):
    state[max(state)] = torch.zeros_like(state[max(state)], dtype=torch.int32)


WRONG_WEIGHTS = {
    "lacking": (lacking, r"is not whole: it lacks 1 weights, .* among them"),
    "surplus": (surplus, r"is of another model or method: 'text_decoder\.bias' has no place in blip-mini"),
    "misshapen": (misshapen, r"is of another model than blip-mini: .*vision_proj.* is \(7, 5\), not \(128, 192\)"),
    "not a number": (not_a_number, r"holds NaN or infinity; train anew, with a lower train\.learning_rate"),
    "whole numbers": (whole_numbers, r"is of type torch\.int32, no weight"),
}
WRONG_BYTES = {
    "empty": (b"", "is empty"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of git-lfs"),
    "no safetensors": (b"nothing of the kind" * 9, "is broken"),
}


@pytest.mark.parametrize("method", ["aurora", "vera", "heads"])
def test_weights_that_do_not_fit_are_refused(method, tmp_path):
    save_adapter(shaken(method), tmp_path / "adapter")
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    original, fresh = file.read_bytes(), load_backbone("blip-mini")
    for change, message in WRONG_WEIGHTS.values():
        file.write_bytes(original)
        state = load_file(file)
        change(state)
        save_file(state, file)
        assert re.fullmatch(rf"{re.escape(str(file))}:? .*{message}.*", refusal(tmp_path / "adapter", method, fresh))
    for content, message in (*WRONG_BYTES.values(), (original[:-9], "is broken"), (original[:1000], "is broken")):
        file.write_bytes(content)
        assert re.fullmatch(rf"{re.escape(str(file))} .*{message}.*", refusal(tmp_path / "adapter", method, fresh))


def test_every_single_weight_is_missed(tmp_path):
    """Context with its bank, gates, factors, rows and heads."""
    backbone = load_backbone("blip-mini")
    apply_method(backbone, "aurora", {"r": 4, "core": "full", "context": "batch", "gate": "scale_shift"})
    save_adapter(backbone, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = {name: weight.clone() for name, weight in load_file(file).items()}  # loaded ones may lie in the file
    own = {name.rpartition(".")[2]: name for name in state}  # one of each kind
    assert len(own) > 7 and any("bank" in name for name in own)
    fresh = load_backbone("blip-mini")
    for name in own.values():
        save_file({key: value for key, value in state.items() if key != name}, file)
        with pytest.raises(AuroraError, match=re.escape(f"lacks 1 weights, {name} ")):
            load_adapter(copy.deepcopy(fresh), tmp_path / "adapter", "aurora")


def config_with(**values):
    return lambda content: json.dumps(json.loads(content) | values)


WRONG_CONFIGS = {
    "empty": (lambda _: "", "not JSON"),
    "cut": (lambda content: content[:40], "not JSON"),
    "a list": (lambda _: "[1]", "holds a list of 1, not the configuration of an adapter"),
    "no type": (lambda _: "{}", "the adapter is of peft type None, but the run's method is aurora"),
    "an unknown type": (config_with(peft_type="NEWEST"), "of peft type 'NEWEST', but"),
    "an odd type": (config_with(peft_type=[[1]]), "of peft type a list of 1, but"),
    "another method": (config_with(peft_type="LORA"), "the adapter is of lora or dora, but the run's method is aurora"),
    "another rank": (config_with(r=5), "is 4, not 5|is .*4.*, not .*5"),
    "a huge rank": (config_with(r=10**9), "r is 1000000000, which no weight beside it has"),
    "no rank": (config_with(r="x"), "no configuration of peft"),
    "another core": (config_with(core="full"), "lambda_. has no place"),
    "an unknown core": (config_with(core="cubic"), "no configuration of peft"),
    "other targets": (config_with(target_modules=["qkv"]), "has no place in blip-mini"),
    "odd targets": (config_with(target_modules=5), "does not fit blip-mini|no configuration of peft"),
    "no such targets": (config_with(target_modules=["zzz"]), "does not fit blip-mini"),
    "odd pattern": (config_with(target_modules="("), "does not fit blip-mini|no configuration of peft"),
    "odd heads": (config_with(modules_to_save=7), "does not fit blip-mini|no configuration of peft"),
    "no heads": (config_with(modules_to_save=None), "has no place in blip-mini"),
    "another base": (
        config_with(base_model_name_or_path="Salesforce/blip-itm-base-coco"),
        "was trained on 'Salesforce/blip-itm-base-coco', not on blip-mini",
    ),
}


def test_configurations_that_do_not_fit_are_refused(tmp_path, recwarn):
    save_adapter(shaken("aurora"), tmp_path / "adapter")
    file, fresh = tmp_path / "adapter/adapter_config.json", load_backbone("blip-mini")
    original = file.read_text()
    for case, (change, message) in WRONG_CONFIGS.items():
        file.write_text(change(original))
        with pytest.raises(AuroraError) as caught:
            load_adapter(copy.deepcopy(fresh), tmp_path / "adapter", "aurora")
        assert re.search(message, str(caught.value)), (case, str(caught.value))
        assert "\n" not in str(caught.value) and str(tmp_path / "adapter") in str(caught.value), case
    file.unlink()
    assert "adapter_config.json cannot be read" in refusal(tmp_path / "adapter", "aurora")
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.filterwarnings("ignore:Specified to not")  # peft's own loading
@pytest.mark.parametrize("method", ADAPTER)
def test_peft_loads_it_to_the_same_model(method, tmp_path, backbone):
    save_adapter(shaken(method), tmp_path / "adapter")
    theirs = load_backbone("blip-mini")
    theirs.adapter = PeftModel.from_pretrained(theirs.model, str(tmp_path / "adapter"))
    load_adapter(backbone, tmp_path / "adapter", method)
    assert torch.equal(outputs(backbone), outputs(theirs))


@pytest.mark.parametrize("method", ["aurora", "lora"])
def test_peft_merges_it_and_takes_the_heads_out_of_their_wrappers(method):
    backbone = shaken(method)
    expected = outputs(backbone)
    merged = backbone.adapter.merge_and_unload()
    assert merged is backbone.model and not any("modules_to_save" in name for name, _ in merged.named_parameters())
    backbone.adapter = None
    assert torch.allclose(outputs(backbone), expected, atol=1e-4)


# A full disk


@pytest.mark.parametrize(("method", "writer"), [("aurora", "peft.peft_model.safe_save_file"), ("heads", "save_file")])
def test_a_full_disk_leaves_nothing_half_written(method, writer, tmp_path, monkeypatch):
    backbone = shaken(method)
    (tmp_path / "other").mkdir()

    def full(tensors, path, *_, **__):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer if "." in writer else f"aurora_petl.baselines.{writer}", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_adapter(backbone, tmp_path / "adapter")
    assert caught.value.errno == errno.ENOSPC and str(tmp_path / "adapter") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_files_have_the_permissions_of_the_umask(tmp_path, backbone):
    before = os.umask(0o022)
    try:
        apply_method(backbone, "aurora", options("aurora"))
        save_adapter(backbone, tmp_path / "adapter")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert modes == {0o644} and stat.S_IMODE((tmp_path / "adapter").stat().st_mode) == 0o755
