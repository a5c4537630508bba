"""What a saved folder says, and folders whose weights do not fit."""

import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from aurora_petl.adapter.card import LOADING, with_loading
from aurora_petl.adapter.fit import check_weights

from .tiny import Net, aurora_config

INSIDE = "base_model.model."
FACTORS = "base_model.model.aurora_factors."
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    get_peft_model(Net(), aurora_config(modules_to_save=["head"])).save_pretrained(tmp_path)
    return tmp_path


# What the folder says


def test_a_process_without_the_package(folder):
    """Nothing of ours runs there: peft's error, which repeats a field of the file, says what to install, and so do the
    files beside the weights."""
    script = f"""
        import warnings
        from peft import AutoPeftModel, PeftConfig, PeftModel
        for load in (
            lambda: PeftConfig.from_pretrained({str(folder)!r}),
            lambda: AutoPeftModel.from_pretrained({str(folder)!r}),
            lambda: PeftModel.from_pretrained(None, {str(folder)!r}),
        ):
            try:
                load()
            except KeyError as error:
                assert "pip install aurora-petl" in str(error) and "import aurora_petl" in str(error), error
            else:
                raise SystemExit("loaded")
        import aurora_petl
        warnings.simplefilter("error")
        PeftConfig.from_pretrained({str(folder)!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
    for name in ("README.md", "adapter_config.json"):
        assert all(word in (folder / name).read_text() for word in ("AURORA_PETL", "aurora-petl", "import aurora_petl"))


def test_files_of_earlier_versions(folder):
    """The method's bare name, and shared factors that did not lie in the model."""
    expected = PeftModel.from_pretrained(Net(), folder).state_dict()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "AURORA_PETL"}))
    weights = load_file(folder / "adapter_model.safetensors")
    earlier = {name.replace(FACTORS, "base_model.aurora_factors."): weight.clone() for name, weight in weights.items()}
    assert earlier.keys() != weights.keys()
    save_file(earlier, folder / "adapter_model.safetensors")
    check_weights(get_peft_model(Net(), aurora_config(modules_to_save=["head"])), earlier)
    loaded = PeftModel.from_pretrained(Net(), folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items() if "aurora_" in name)


def test_the_card_has_no_blanks(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and LOADING in card and "- PEFT " in card
    assert "More Information Needed" not in card
    get_peft_model(Net(), aurora_config()).save_pretrained(folder)  # again, over itself
    assert (folder / "README.md").read_text().strip() == card.strip()


def test_a_card_that_somebody_wrote_stays(folder):
    card = (folder / "README.md").read_text()
    written = card.replace(LOADING, "# Model Card for Model ID\n\nMine, of 7 April.\n")
    (folder / "README.md").write_text(written)
    model = get_peft_model(Net(), aurora_config())
    for _ in range(2):
        model.save_pretrained(folder)
        card = (folder / "README.md").read_text()
        assert card.count(LOADING) == 1 and card.count("Mine, of 7 April.") == 1
    assert with_loading("no metadata") == f"{LOADING}\nno metadata\n" and with_loading("") == LOADING


def test_what_the_file_says_of_itself_changes_nothing(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "import aurora_petl" in config["requires"]
    config["requires"] = "something else"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings(action="error"):
        loaded = PeftModel.from_pretrained(Net(), folder)
    assert "import aurora_petl" in loaded.peft_config["default"].to_dict()["requires"]


# Weights that do not fit


def without_a_factor(weights):
    del weights[f"{FACTORS}V_12"]


def without_rows(weights):
    del weights[f"{INSIDE}up.aurora_P"], weights[f"{INSIDE}down.aurora_P"]


def of_another_core(weights):
    del weights[f"{FACTORS}lambda_"]
    weights[f"{FACTORS}C"] = torch.ones(4, 4, 4)


def of_a_larger_model(weights):
    weights[f"{INSIDE}other.aurora_P"] = torch.ones(1, 4)


def of_lora(weights):
    weights.clear()
    lora = get_peft_model(Net(), LoraConfig(r=4, target_modules=["up"], modules_to_save=["head"]))
    weights.update(peft_weights(lora))


def with_nan(weights):
    weights[f"{FACTORS}U_8"][3, 1] = NAN


def with_infinity_in_the_head(weights):
    weights[f"{INSIDE}head.weight"][0, 0] = INFINITE


def misshapen(weights):
    weights[f"{FACTORS}U_8"] = torch.ones(8, 5)


def peft_weights(model):
    return {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}


MISFITS = [
    (without_a_factor, r"V_12.* is missing$"),
    (without_rows, r"down\.aurora_P.* is missing, and so for 1 more$"),
    (of_another_core, r"lambda_.* is missing; .*C.* has no place in the model$"),
    (of_a_larger_model, r"other\.aurora_P has no place in the model$"),
    (of_lora, r"is missing, and so for 8 more; .*lora_A.* has no place in the model, and so for 1 more$"),
    (with_nan, r"U_8.* holds NaN or infinite values$"),
    (with_infinity_in_the_head, r"head\..*weight holds NaN or infinite values$"),
]
each_misfit = pytest.mark.parametrize(("spoil", "words"), MISFITS, ids=lambda x: getattr(x, "__name__", ""))


def spoiled(folder, spoil):
    file = folder / "adapter_model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}  # loaded ones may lie in the file
    spoil(weights)
    save_file(weights, file)
    return weights


@each_misfit
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_misfits_are_refused_by_peft(folder, spoil, words, low_cpu_mem_usage):
    weights = spoiled(folder, spoil)
    with pytest.raises(ValueError, match=f"do not fit adapter 'default' of PeftModel: .*{words}"):
        PeftModel.from_pretrained(Net(), folder, low_cpu_mem_usage=low_cpu_mem_usage)
    model = get_peft_model(Net(), aurora_config(modules_to_save=["head"]))
    with pytest.raises(ValueError, match=words):
        set_peft_model_state_dict(model, weights)
    with pytest.raises(ValueError, match=f"'second'.*{words}"):
        model.load_adapter(folder, "second")


@each_misfit
def test_misfits_are_told_by_the_check(folder, spoil, words):
    model = get_peft_model(Net(), aurora_config(modules_to_save=["head"]))
    check_weights(model, load_file(folder / "adapter_model.safetensors"))
    with pytest.raises(ValueError, match=words):
        check_weights(model, spoiled(folder, spoil))


def test_weights_of_another_shape(folder):
    model = get_peft_model(Net(), aurora_config(modules_to_save=["head"]))
    with pytest.raises(ValueError, match=r"U_8 is of shape \(8, 5\) where \(8, 4\) is due"):
        check_weights(model, spoiled(folder, misshapen))
    with pytest.raises(RuntimeError, match="size mismatch for base_model.model.aurora_factors.default.U_8"):
        PeftModel.from_pretrained(Net(), folder)
    with pytest.warns(UserWarning, match="found shape") as told:  # asked for
        PeftModel.from_pretrained(Net(), folder, ignore_mismatched_sizes=True)
    assert any("missing adapter keys" in str(warning.message) for warning in told)


def test_the_check_serves_other_methods():
    model = get_peft_model(Net(), LoraConfig(r=4, target_modules=["up", "down"]))
    weights = peft_weights(model)
    check_weights(model, weights)
    weights.pop(f"{INSIDE}up.lora_B.weight")
    with pytest.raises(ValueError, match=r"up\.lora_B\.weight is missing"):
        check_weights(model, weights)
