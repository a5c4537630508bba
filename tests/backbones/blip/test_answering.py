"""What the answering side of BLIP loads, and how much of it an adapter tunes."""

import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForQuestionAnswering

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter.layer import AuroraLinear
from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.load import resolve
from aurora_petl.errors import AuroraError


def test_adapter_of_blip_base_has_72_slices_more_with_the_decoder():
    with torch.device("meta"):
        model = BlipForQuestionAnswering(BlipConfig())
    adapted = get_peft_model(model, AuroraConfig(r=64))
    slices = {True: 0, False: 0}
    for name, layer in adapted.named_modules():
        if isinstance(layer, AuroraLinear):
            slices["text_decoder" in name] += len(layer.aurora_P["default"])
    assert slices == {False: 108, True: 72}
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained == 2 * 768 * 64 + 180 * 64 + 64


def test_a_model_without_a_decoder_is_refused(tmp_path):
    shutil.copytree(resolve("blip-mini"), tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    state = {name: value for name, value in load_file(file).items() if not name.startswith("text_decoder")}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(AuroraError, match=r"has no text_decoder, which vqa needs; take a model with an answer decoder"):
        load_backbone(tmp_path / "model", task="vqa")
    with pytest.raises(AuroraError, match="blip-mini is of family BLIP, which does retrieval, vqa, not task 'poetry'"):
        load_backbone("blip-mini", task="poetry")


def test_a_model_with_its_own_decoder_words_keeps_them(tmp_path):
    backbone = load_backbone("blip-mini", task="vqa")
    decoder = backbone.model.text_decoder
    with torch.no_grad():
        decoder.bert.embeddings.word_embeddings.weight[7].fill_(0.5)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    again = load_backbone(tmp_path, task="vqa").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in backbone.model.state_dict().items())


def test_embedded_decoder_starts_with_the_encoders_words(capfd):
    model = load_backbone("blip-mini", task="vqa").model
    encoder, decoder = model.text_encoder.embeddings, model.text_decoder.bert.embeddings
    for name, value in encoder.state_dict().items():
        assert torch.equal(decoder.state_dict()[name], value)
    assert decoder.word_embeddings.weight is not encoder.word_embeddings.weight
    assert model.text_decoder.cls.predictions.decoder.weight is decoder.word_embeddings.weight
    assert "".join(capfd.readouterr()) == ""
