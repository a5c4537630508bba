"""The BLIP backbone against transformers' own forward, and what loading says when it cannot."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_petl.backbones import embedded_models, load_backbone
from aurora_petl.backbones.load import resolve
from aurora_petl.errors import AuroraError


@pytest.fixture
def batch(backbone):
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    return pixels, backbone.texts(["a red apple", "a dog"], 35)


@torch.no_grad()
def test_itc_equals_transformers(backbone, batch):
    backbone.model.eval()
    pixels, texts = batch
    ours = backbone.encode_image(pixels).feature @ backbone.encode_text(texts).feature.T
    theirs = backbone.model(
        input_ids=texts.ids, pixel_values=pixels, attention_mask=texts.mask, use_itm_head=False
    ).itm_score
    assert torch.allclose(ours, theirs, atol=1e-5)


@torch.no_grad()
def test_itm_equals_transformers_given_the_enc_token(backbone, batch):
    backbone.model.eval()
    pixels, texts = batch
    ours = backbone.match(texts, backbone.encode_image(pixels).states)
    enc = texts.ids.clone()
    enc[:, 0] = 30523
    theirs = backbone.model(input_ids=enc, pixel_values=pixels, attention_mask=texts.mask).itm_score
    assert torch.allclose(ours, theirs, atol=1e-5)


@torch.no_grad()
def test_one_picture_serves_many_texts(backbone, batch):
    backbone.model.eval()
    pixels, texts = batch
    states = backbone.encode_image(pixels[:1]).states
    assert torch.allclose(backbone.match(texts, states), backbone.match(texts, states.expand(2, -1, -1)), atol=1e-5)


def test_words_are_bert_pieces_with_dec_and_enc(backbone):
    assert backbone.tokenizer("a photo of a dog").input_ids == [101, 1037, 6302, 1997, 1037, 3899, 102]
    assert backbone.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]


def test_embedded_weights_are_float16_and_small():
    path = f"{resolve('blip-mini')}/model.safetensors"
    state = load_file(path)
    assert {str(value.dtype) for name, value in state.items() if name != "temperature"} == {"torch.float16"}
    assert any(name.startswith("text_decoder.bert.encoder.layer.0.attention") for name in state)
    assert sum(value.nbytes for value in state.values()) < 30e6
    assert load_backbone("blip-mini").model.temperature().item() == pytest.approx(state["temperature"].item())


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(AuroraError, match=r"no model './nothing'.*blip-mini"):
        load_backbone("./nothing")
    with pytest.raises(AuroraError, match="no config.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(AuroraError, match="type 'bert'.*blip"):
        load_backbone(tmp_path)
    assert embedded_models() == ["blip-mini"]


def test_missing_weights_are_counted(tmp_path):
    shutil.copytree(resolve("blip-mini"), tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    state = load_file(file)
    state.pop("itm_head.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(AuroraError, match="1 weights are missing, itm_head.weight"):
        load_backbone(tmp_path / "model")
    file.unlink()
    with pytest.raises(AuroraError, match=r"model\.safetensors"):
        load_backbone(tmp_path / "model")
