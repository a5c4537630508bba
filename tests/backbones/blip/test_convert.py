"""Original checkpoints to model folders: the same numbers, and every key accounted for."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from aurora_petl.backbones import blip, load_backbone
from aurora_petl.backbones.blip.convert import convert, read_momentum, rename
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.training import prepare
from tests.helpers import checkpoints


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
@torch.no_grad()
def test_the_converted_model_computes_what_the_original_does(kind, conversions, states):
    backbone, original = load_backbone(conversions[kind].folder), checkpoints.Original(states[kind])
    backbone.model.eval()
    texts = backbone.texts(checkpoints.TEXTS, 35)
    ids, mask = texts.ids, texts.mask
    assert (mask == 0).any()
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, 64, 64)
    image = backbone.encode_image(pixels)
    assert torch.allclose(image.states, original.image(pixels), atol=1e-5)
    itc = image.feature @ backbone.encode_text(texts).feature.T
    assert torch.allclose(itc, original.itc(pixels, ids, mask), atol=1e-5)
    itm = backbone.match(texts, image.states)
    assert itm.std() > 0.1
    assert torch.allclose(itm, original.itm(pixels, ids, mask), atol=1e-5)
    assert backbone.model.temperature().item() == pytest.approx(0.043)


@pytest.mark.parametrize("kind", checkpoints.MAKERS)
def test_every_key_is_used_or_accounted_for(kind, conversions, states):
    report, state = conversions[kind], states[kind]
    assert sorted([*report.used, *report.momentum, *report.dropped]) == sorted(state)
    assert all("position_ids" in key or "queue" in key or ".predictions.decoder." in key for key in report.dropped)
    assert {key for key in state if "_m." in key and "position_ids" not in key} <= set(report.momentum)
    weights = load_file(report.folder / "model.safetensors")
    assert len(weights) == len(report.used)
    for key in report.used:
        if key != "temp":
            assert torch.equal(weights[rename(key)], state[key]), key
    assert (report.folder / "momentum.safetensors").is_file() == (kind != "vqa")
    assert not list(report.folder.parent.glob("*.part"))


@pytest.mark.parametrize(
    "kind, classes",
    [
        ("pretraining", [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration]),
        ("retrieval", [BlipForImageTextRetrieval]),
        ("vqa", [BlipForQuestionAnswering, BlipForConditionalGeneration]),
    ],
)
def test_transformers_classes_find_all_their_weights(kind, classes, conversions, states):
    for made in classes:
        model, report = made.from_pretrained(conversions[kind].folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        own = dict(model.named_parameters(remove_duplicate=False))
        for key, value in states[kind].items():
            if (name := rename(key)) in own:
                assert torch.equal(own[name], value), key
    assert json.loads((conversions[kind].folder / "config.json").read_text())["architectures"] == [classes[0].__name__]


def test_configuration_follows_the_shapes(conversions):
    config = BlipConfig.from_pretrained(conversions["pretraining"].folder)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (192, 3, 3)
    assert (vision.image_size, vision.patch_size, vision.layer_norm_eps) == (64, 16, 1e-6)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (128, 3, 2)
    assert (text.encoder_hidden_size, text.vocab_size, text.layer_norm_eps) == (192, 30524, 1e-12)
    assert config.image_text_hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(conversions["pretraining"].folder)
    assert tokenizer.model_max_length == text.max_position_embeddings == 40
    assert tokenizer("a dog").input_ids == [101, 1037, 3899, 102]
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    size = json.loads((conversions["pretraining"].folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 64, "width": 64}


def test_a_decoder_that_is_not_tied_keeps_both_weights(states, tmp_path):
    state = dict(states["vqa"])
    state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.bias"] + 1
    torch.save({"model": state}, tmp_path / "vqa.pth")
    report = convert(tmp_path / "vqa.pth", tmp_path / "model")
    assert "text_decoder.cls.predictions.decoder.bias" in report.used
    assert "text_decoder.cls.predictions.decoder.weight" in report.dropped


def test_a_checkpoint_of_vqa_says_what_retrieval_lacks(conversions):
    assert conversions["vqa"].lacking == {"retrieval": ["vision_proj", "text_proj", "itm_head"]}
    with pytest.raises(AuroraError, match="has no vision_proj, text_proj, itm_head, which retrieval needs"):
        load_backbone(conversions["vqa"].folder)


def test_old_torch_files_are_read_too(states, tmp_path):
    torch.save({"model": states["retrieval"]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old.pth", tmp_path / "model")
    assert load_backbone(tmp_path / "model").model.temperature().item() == pytest.approx(0.043)


# Picture sizes


@torch.no_grad()
def test_positions_for_another_size_equal_transformers_own_at_every_call():
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 144, 144)
    resized, plain = load_backbone("blip-mini", image_size=144), load_backbone("blip-mini")
    wanted = plain.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    assert resized.image_size == resized.model.config.vision_config.image_size == 144
    assert torch.allclose(resized.image_states(pixels), wanted, atol=1e-6)
    first = "vision_model.embeddings.position_embedding"
    before, after = plain.model.state_dict()[first], resized.model.state_dict()[first]
    assert after.shape == (1, 145, 192) and torch.equal(before[:, 0], after[:, 0])
    assert load_backbone("blip-mini", image_size=144, weights=False).model.state_dict()[first].shape == after.shape


def test_converting_to_a_size_equals_loading_at_it(originals, conversions, tmp_path):
    folder = convert(originals["retrieval"], tmp_path / "model", image_size=96).folder
    loaded = load_backbone(conversions["retrieval"].folder, image_size=96).model.state_dict()
    for name, value in load_backbone(folder).model.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    name = "vision_model.embeddings.position_embedding"
    small, large = (read_momentum(path, [name], 96).weights[name] for path in (conversions["retrieval"].folder, folder))
    assert small.shape == (1, 37, 192) and torch.equal(small, large)


@pytest.mark.parametrize("size, fit", [(100, "96 and 108"), (7, "12"), (-12, "12"), (0, "12")])
def test_sizes_that_patches_do_not_fill_are_refused(size, fit):
    for weights in (True, False):
        with pytest.raises(AuroraError, match=rf"image_size is {size}, .*12 pixels.*: {fit}$"):
            load_backbone("blip-mini", image_size=size, weights=weights)


def test_a_recipe_sets_the_size(folder):
    recipe = load_recipe(None, [f"data={folder}", "image_size=72", "train.batch_size=4"])
    assert prepare(recipe, check=False).backbone.image_size == 72
    assert load_recipe(None, []).image_size == 0


# Models of the hub


@torch.no_grad()
def test_hub_configurations_are_put_right(conversions, states):
    """As transformers has BLIP by default: 8 heads for texts, vision epsilon 1e-5."""
    path = conversions["retrieval"].folder
    config = BlipConfig.from_pretrained(path)
    config.text_config.num_attention_heads, config.vision_config.layer_norm_eps = 8, 1e-5
    backbone = blip.load(path, config, "Salesforce/blip-itm-base-coco")
    backbone.model.eval()
    pixels, texts = torch.randn(3, 3, 64, 64), backbone.texts(checkpoints.TEXTS, 35)
    wanted = checkpoints.Original(states["retrieval"]).itm(pixels, texts.ids, texts.mask)
    assert torch.allclose(backbone.match(texts, backbone.image_states(pixels)), wanted, atol=1e-5)
