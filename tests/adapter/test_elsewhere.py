"""The adapter in the hands of other libraries, which add, train, save and load it by their own means."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import peft
import pytest
import torch
import transformers
from packaging import version
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, save_as_lora, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, CLIPModel, Trainer, TrainingArguments
from transformers.integrations import peft as transformers_peft

from aurora_petl.adapter import AuroraConfig
from tests.helpers.families import clip

from .cases import CASES, pairs


def needs(name: str, *more: str):
    missing = [module for module in (name, *more) if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


# transformers


@pytest.fixture
def base(tmp_path):
    """A small CLIP in a folder, where transformers takes adapters of the installed peft."""
    wanted = getattr(transformers_peft, "MIN_PEFT_VERSION", "0")
    if version.parse(peft.__version__) < version.parse(wanted):
        pytest.skip(f"transformers {transformers.__version__} takes adapters of peft {wanted} and newer")
    CASES["clip"].base().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def scores(model: CLIPModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**pairs()).logits_per_image


def adapted(base) -> CLIPModel:
    model = AutoModel.from_pretrained(base)
    torch.manual_seed(1)
    model.add_adapter(AuroraConfig(r=4, init_weights=False))
    return model


def test_transformers_saves_and_loads(tmp_path, base):
    model, plain = adapted(base), scores(AutoModel.from_pretrained(base))
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names and all("aurora_" in name for name in names)
    expected = scores(model)
    assert not torch.allclose(expected, plain, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert torch.equal(scores(AutoModel.from_pretrained(tmp_path / "adapter")), expected)

    loaded = AutoModel.from_pretrained(base)
    told = loaded.load_adapter(tmp_path / "adapter")
    if told is not None:  # as since transformers 5.7 or later
        assert not told.missing_keys and not told.unexpected_keys and not told.mismatched_keys
    assert torch.equal(scores(loaded), expected) and not any(weight.requires_grad for weight in loaded.parameters())
    loaded.disable_adapters()
    assert torch.equal(scores(loaded), plain)
    loaded.enable_adapters()
    with pytest.warns(UserWarning, match="multiple adapters"):
        loaded.load_adapter(tmp_path / "adapter", "second", is_trainable=True)
    loaded.set_adapter("second")
    loaded.delete_adapter("default")
    assert torch.equal(scores(loaded), expected) and not any(".default" in name for name in loaded.state_dict())


def test_what_one_saves_the_other_loads(tmp_path, base):
    model = adapted(base)
    model.save_pretrained(tmp_path / "transformers")
    wrapped = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "transformers")
    assert torch.equal(scores(wrapped), scores(model))
    wrapped.save_pretrained(tmp_path / "peft")
    loaded = AutoModel.from_pretrained(base)
    loaded.load_adapter(tmp_path / "peft")
    assert torch.equal(scores(loaded), scores(model))
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(scores(AutoModel.from_pretrained(tmp_path / "merged")), scores(model), atol=1e-5)


class Pairs(CLIPModel):
    def forward(self, pixel_values, input_ids):
        return {"loss": super().forward(input_ids, pixel_values, return_loss=True).loss}


def test_trained_by_trainer(tmp_path, base):
    """It saves the adapter alone. It resumes a `PeftModel`, not a model with adapters of its own, of any method."""
    draw = torch.Generator().manual_seed(3)
    pictures, ids = torch.randn(8, 3, 16, 16, generator=draw), torch.randint(3, 50, (8, 6), generator=draw)
    data = [{"pixel_values": picture, "input_ids": words} for picture, words in zip(pictures, ids, strict=True)]
    model = Pairs.from_pretrained(base)
    model.add_adapter(AuroraConfig(r=4))
    settings = dict(max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, use_cpu=True, save_strategy="steps")
    settings |= dict(save_steps=3, report_to=[], disable_tqdm=True, remove_unused_columns=False)
    Trainer(model, TrainingArguments(str(tmp_path / "run"), **settings), train_dataset=data).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    trained = {name: weight for name, weight in model.named_parameters() if "aurora_" in name}
    assert all(weight.any() for name, weight in trained.items() if "V_" in name)
    loaded = AutoModel.from_pretrained(checkpoint)
    assert all(torch.equal(loaded.get_parameter(name), weight) for name, weight in trained.items())


# LoRA


WITHOUT_US = """
    import sys
    sys.modules["aurora_petl"] = None  # an import of it fails from here on
    import json, pathlib, transformers
    from peft import PeftModel
    from safetensors.torch import load_file
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        kind, output = json.loads((folder / "case.json").read_text())
        model = PeftModel.from_pretrained(getattr(transformers, kind).from_pretrained(folder / "base"), folder / "lora")
        assert type(model.peft_config["default"]).__name__ == "LoraConfig"
        inputs = load_file(folder / "inputs.safetensors")
        expected = inputs.pop("expected")
        difference = (getattr(model.eval()(**inputs), output) - expected).abs().max().item()
        print(folder.name, difference)
        assert difference <= 1e-5, (folder.name, difference)
"""
AS_LORA = {
    "clip": ("clip", {}),
    "full core": ("clip", {"core": "full"}),
    "grouped heads": ("decoder", {}),
    "conv1d": ("conv1d", {}),
    "fused layers": ("blip", {}),
}


def test_as_a_lora_in_a_process_without_this_package(tmp_path):
    for name, (case, fields) in AS_LORA.items():
        case, folder = CASES[case], tmp_path / name
        model = case.base()
        model.save_pretrained(folder / "base")
        (folder / "case.json").write_text(json.dumps([type(model).__name__, case.output]))
        torch.manual_seed(1)
        model = get_peft_model(model, case.config(**fields)).eval()
        expected = case.run(model)
        assert not torch.allclose(expected, case.run(case.base()), atol=1e-3)
        save_as_lora(folder / "lora", model, rank=4)
        save_file({**case.inputs(), "expected": expected.detach().contiguous()}, folder / "inputs.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WITHOUT_US), str(tmp_path)]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert [line.rpartition(" ")[0] for line in done.stdout.splitlines()] == sorted(AS_LORA)


# sentence-transformers


TEXTS = ["a red circle", "a blue square", "one green star", "the white ring", "a black cross", "some yellow heart"]


@pytest.fixture
def photos():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in TEXTS]


@needs("sentence_transformers", "datasets")
def test_trained_by_sentence_transformers(tmp_path, photos):
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(0)
    (tmp_path / "clip").mkdir()
    clip(tmp_path / "clip")
    data = Dataset.from_dict({"image": photos, "text": TEXTS})

    def features(model) -> tuple[np.ndarray, np.ndarray]:
        return model.encode(photos), model.encode(TEXTS)

    def train(folder, **resume) -> SentenceTransformer:
        model = SentenceTransformer(str(tmp_path / "clip"), device="cpu")
        start = features(model)
        torch.manual_seed(1)
        model.add_adapter(AuroraConfig(r=4))
        assert all(map(np.array_equal, features(model), start))
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / folder), max_steps=6, save_steps=3, per_device_train_batch_size=3, learning_rate=0.02,
            report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(model, arguments, data, loss=MultipleNegativesRankingLoss(model))
        trainer.train(**resume)
        assert all(np.abs(after - before).max() > 1e-3 for after, before in zip(features(model), start, strict=True))
        return model

    model = train("run")
    expected = features(model)
    model.save(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    for folder in ("saved", "run/checkpoint-6"):
        loaded = SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(features(loaded), expected, strict=True))
    resumed = train("again", resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
    assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(features(resumed), expected, strict=True))


# diffusers


@needs("diffusers")
def test_added_by_diffusers():
    from diffusers import UNet2DConditionModel

    def unet():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=12, norm_num_groups=4,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip

    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 5]), torch.randn(2, 5, 12)
    config = AuroraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_weights=False)
    model = unet()
    base = model(*inputs).sample
    model.add_adapter(config)
    y = model(*inputs).sample
    y.square().mean().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(model.get_parameter(name).grad is not None for name in trained)
    state = get_peft_model_state_dict(model)
    other = unet()
    other.add_adapter(AuroraConfig(**{**vars(config), "init_weights": True}))
    assert not set_peft_model_state_dict(other, state).unexpected_keys
    assert torch.equal(other(*inputs).sample, y) and not torch.allclose(y, base, atol=1e-3)
    model.set_adapters(["default"], [0.0])
    assert torch.allclose(model(*inputs).sample, base, atol=1e-6)
    model.set_adapters(["default"], [1.0])
    assert torch.allclose(model(*inputs).sample, y, atol=1e-6)
    model.fuse_lora(lora_scale=1.0)
    assert torch.allclose(model(*inputs).sample, y, atol=1e-5)
    model.unfuse_lora()
    model.disable_adapters()
    assert torch.allclose(model(*inputs).sample, base, atol=1e-5)
    model.enable_adapters()
    model.delete_adapters("default")
    assert torch.allclose(model(*inputs).sample, base, atol=1e-5)


# scaled layers


@pytest.mark.parametrize("name", ["widths", "widths full", "widths split", "attention", "convolutions", "clip"])
def test_scaled_layers(name):
    """What diffusers does to layers of adapters with weights."""
    case = CASES[name]
    model = get_peft_model(case.base(), case.config())
    y, base = case.run(model), case.run(case.base())
    layers = [module for module in model.modules() if hasattr(module, "set_scale")]
    for layer in layers:
        layer.set_scale("default", 0.0)
        layer.set_scale("other", 7.0)  # of no adapter that it has
    assert torch.allclose(case.run(model), base, atol=1e-5)
    for layer in layers:
        layer.set_scale("default", 2.0)
        layer.scale_layer(0.25)
        layer.unscale_layer(0.5)
    assert torch.allclose(case.run(model), y, atol=1e-5)
    one = layers[0]
    delta = one.get_delta_weight("default")
    one.set_scale("default", 0.5)
    assert torch.allclose(one.get_delta_weight("default"), delta / 2)
    halved = case.run(model)
    halved.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    with torch.no_grad():
        one.aurora_P["default"].mul_(0.5)
    one.unscale_layer()
    assert torch.allclose(case.run(model), halved, atol=1e-5)


def test_a_saved_file_is_the_same_whoever_adds_the_adapter(tmp_path, base):
    wrapped = get_peft_model(AutoModel.from_pretrained(base), AuroraConfig(r=4))
    wrapped.save_pretrained(tmp_path / "peft")
    adapted(base).save_pretrained(tmp_path / "transformers")
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "transformers")]
    different = {key for key in configs[0] if configs[0][key] != configs[1][key]}
    assert different <= {"init_weights", "inference_mode", "target_modules", "auto_mapping"}
