"""What decoder models refuse, before a picture is decoded."""

import shutil

import pytest
from PIL import Image

from aurora_petl.backbones import is_ranker, load_backbone
from aurora_petl.backbones.families import FAMILIES
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.settings import VQASettings
from aurora_petl.tasks.vqa import VQA
from aurora_petl.training import prepare
from tests.helpers import benchmarks

from .asked import KINDS, QUESTIONS, collate


def without(folder, copy, *files):
    shutil.copytree(folder, copy)
    for file in files:
        (copy / file).unlink()
    return copy


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["chat_template.jinja"], "has no chat template, which says how it is asked; put chat_template.jinja into"),
        (["preprocessor_config.json"], "has no preprocessor_config.json, which says how it reads pictures"),
        (["tokenizer.json"], "has no tokenizer: put tokenizer.json and tokenizer_config.json into its folder"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_decoded(files, message, folders, tmp_path):
    root = benchmarks.vqav2(tmp_path / "data")
    for picture in root.rglob("*.jpg"):
        picture.write_bytes(b"no picture")
    folder = without(folders("smolvlm"), tmp_path / "model", *files)
    recipe = load_recipe("vqav2-writer", [f"model={folder}", f"root={root}", "train.workers=0"])
    with pytest.raises(AuroraError) as caught:
        prepare(recipe)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_parts_of_other_models_are_told(folders, tmp_path):
    mixed = without(folders("smolvlm"), tmp_path / "mixed")
    shutil.copy(folders("qwen2_5_vl") / "preprocessor_config.json", mixed)
    with pytest.raises(AuroraError, match="is of a 'Qwen2VLImageProcessor', the model wants Idefics3Image"):
        load_backbone(mixed, task="vqa")
    mixed = without(folders("qwen2_5_vl"), tmp_path / "template")
    (mixed / "chat_template.jinja").write_text("{% for message in messages %}{{ message['role'] }}{% endfor %}")
    with pytest.raises(AuroraError, match="its chat template shows 0 pictures where 1 were given"):
        load_backbone(mixed, task="vqa")
    (mixed / "chat_template.jinja").write_text("{{ raise_exception('only texts here') }}")
    with pytest.raises(AuroraError, match=r"does not take a picture with a question .*only texts here"):
        load_backbone(mixed, task="vqa")


def test_what_a_decoder_model_does_not_do_is_refused(folders, loaded):
    backbone = loaded("llava")
    assert not is_ranker(backbone) and all("vqa" in FAMILIES[kind].tasks for kind in KINDS)
    with pytest.raises(AuroraError, match="task.inference is rank, but .* writes its answers; set task.inference=gen"):
        VQA.fitted(VQASettings(inference="rank"), backbone)
    with pytest.raises(AuroraError, match="task.prompt is 'why'; it must have {question} where the question belongs"):
        VQA.fitted(VQASettings(prompt="why"), backbone)
    with pytest.raises(AuroraError, match="image_size is 64, but this model reads pictures of 28 pixels a side"):
        load_backbone(folders("llava"), task="vqa", image_size=64)
    with pytest.raises(AuroraError, match="is of family LLaVA, which does vqa, not task 'retrieval'"):
        load_backbone(folders("llava"))
    with pytest.raises(AuroraError, match="a picture of 4000 x 4 pixels cannot be read by this model"):
        collate(loaded("qwen2_5_vl"), [Image.new("RGB", (4000, 4))], QUESTIONS[:1])


def test_a_transformers_that_cannot_take_encoded_pictures_is_told(folders, loaded, monkeypatch):
    class Older:
        def forward(self, input_ids, pixel_values): ...

    kind = type(loaded("smolvlm").model.config)
    monkeypatch.setattr("aurora_petl.backbones.writer.model.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", {kind: Older})
    with pytest.raises(AuroraError, match="models of type smolvlm need a newer transformers than .*; install it with"):
        load_backbone(folders("smolvlm"), task="vqa")
