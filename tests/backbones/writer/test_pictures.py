"""What decoder models read, against transformers' own processors."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm import processing_smolvlm

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.writer import ahead
from tests.helpers.pictures import SHAPES, draw

from .asked import KINDS, PICTURES, QUESTIONS, collate, pixels


def processor(kind, backbone, monkeypatch):
    """transformers' own processor of a family, without the parts for videos, which want torchvision."""
    images, tokenizer, config = backbone.pictures.processor, backbone.tokenizer, backbone.model.config
    rest = {"chat_template": tokenizer.chat_template}
    if kind in ("idefics3", "smolvlm"):
        rest["image_seq_len"] = 4  # 28 / 7 = 4 patches a side, 2 by 2 of them joined
    if kind == "idefics3":
        return Idefics3Processor(images, tokenizer, **rest)
    if kind == "paligemma":
        images.image_seq_length = 16
        return PaliGemmaProcessor(images, tokenizer)
    if kind == "llava":
        more = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
        return LlavaProcessor(images, tokenizer, patch_size=7, num_additional_image_tokens=1, **more, **rest)
    if kind == "internvl":
        rest["image_seq_length"] = 4
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    own = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
    base = (own | {"internvl": InternVLProcessor, "smolvlm": processing_smolvlm.SmolVLMProcessor})[kind]
    made = type("Still", (base,), {"check_argument_for_proper_class": lambda *_: None})
    return made(images, tokenizer, video_processor=SimpleNamespace(num_frames=1, fps=1), **rest)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_pixels_are_those_of_transformers_processor(kind, folders, monkeypatch):
    backbone = load_backbone(folders(kind), task="vqa")
    theirs = processor(kind, backbone, monkeypatch)
    ours = collate(backbone, questions=QUESTIONS[:2])
    asked = [backbone.defaults["prompt"].replace("{question}", question) for question in QUESTIONS[:2]]
    if kind == "paligemma":
        texts = [f"<image>{text}" for text in asked]
    else:
        turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in asked]
        texts = [theirs.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    specials = not (backbone.tokenizer.bos_token and texts[0].startswith(backbone.tokenizer.bos_token))
    found = theirs(
        images=[[picture] for picture in PICTURES] if kind in ("idefics3", "smolvlm") else PICTURES,
        text=texts,
        padding=True,
        padding_side="left",
        add_special_tokens=specials and kind != "paligemma",
        return_tensors="pt",
    )
    assert torch.equal(found["input_ids"], ours["input_ids"])
    assert torch.equal(found["attention_mask"], ours["attention_mask"])
    for name in ("pixel_values", "pixel_attention_mask", "image_grid_thw", "mm_token_type_ids", "token_type_ids"):
        assert (name in ours) == (name in found and not (name == "token_type_ids" and kind != "paligemma"))
        if name in ours:
            padded = found["attention_mask"] == 0  # what is said of padding does not count
            own = torch.as_tensor(ours[name])  # grids are tuples, which stay on the CPU
            rows = [each.masked_fill(padded, 0) if "type" in name else each for each in (found[name], own)]
            assert torch.equal(*rows)


def test_training_views_keep_pictures_whole_in_shape_and_are_drawn_from_the_seed(loaded):
    backbone, picture = loaded("qwen2_5_vl"), draw("cross", "green", 96).resize((90, 60))
    plain = backbone.view()(picture)
    assert torch.equal(plain, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    views = [backbone.view(training=True)(picture, random.Random(seed)) for seed in (0, 1, 0)]
    assert torch.equal(views[0], views[2]) and views[0].shape != views[1].shape
    assert all(0.45 <= view[0].numel() / plain[0].numel() <= 1 for view in views)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_what_is_computed_before_is_what_the_model_computes(kind, loaded, monkeypatch):
    backbone = loaded(kind)
    more = {"answers": ["yes", "no"], "of": [0, 1]}
    first, takes = collate(backbone, questions=QUESTIONS[:2], **more), ahead.TAKEN
    monkeypatch.setattr(ahead, "TAKEN", False)
    plain = collate(backbone, questions=QUESTIONS[:2], **more)
    assert "image_cu_seqlens" not in plain and ("image_cu_seqlens" in first) == takes
    by_model = {name: part for name, part in plain.items() if name != "position_ids"}
    expected = backbone.losses(by_model)
    assert torch.allclose(backbone.losses(first), expected) and torch.allclose(backbone.losses(plain), expected)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm", "internvl", "llava"])
@torch.no_grad()
def test_frames_of_a_clip_are_pictures_of_one_prompt(kind, loaded):
    backbone = loaded(kind)
    clips = [torch.stack(pixels(backbone, [draw(shape, "red", 64) for shape in SHAPES[:2]])) for _ in range(2)]
    clips[1] = clips[1].flip(0)
    prompt, mark = backbone.defaults["prompt"], backbone.model.config.image_token_id
    more = {"answers": ["yes", "no"], "of": [0, 1], "prompt": prompt, "longest": 50}
    batch = backbone.collate(clips, QUESTIONS[:2], **more)
    single = backbone.collate([clip[0] for clip in clips], QUESTIONS[:2], **more)
    marks = [(each["input_ids"] == mark).sum(1) for each in (batch, single)]
    assert torch.equal(marks[0], 2 * marks[1])
    losses = backbone.losses(batch)
    alone = backbone.collate(clips[1:], QUESTIONS[1:2], **(more | {"answers": ["no"], "of": [0]}))
    assert losses[1].item() == pytest.approx(backbone.losses(alone).item(), rel=1e-5)
    turned = backbone.collate([clips[1].flip(0)], QUESTIONS[1:2], **(more | {"answers": ["no"], "of": [0]}))
    assert losses[1].item() != pytest.approx(backbone.losses(turned).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm", "idefics3", "internvl"])
def test_a_size_of_pictures_makes_fewer_marks(kind, folders, loaded):
    large = Image.new("RGB", (300, 200), "red")
    small = load_backbone(folders(kind), task="vqa", image_size=28)
    counts = [
        (collate(each, [large], QUESTIONS[:1])["input_ids"] == each.model.config.image_token_id).sum().item()
        for each in (loaded(kind), small)
    ]
    assert 0 < counts[1] < counts[0] and small.image_size == 28
    same = load_backbone(folders(kind), task="vqa", image_size=loaded(kind).image_size)
    assert torch.equal(*(collate(each, [large], QUESTIONS[:1])["input_ids"] for each in (loaded(kind), same)))


def test_the_mark_of_a_picture_in_a_question_or_an_answer_is_no_picture(loaded):
    backbone, more = loaded("smolvlm"), {"prompt": "{question}", "longest": 50, "of": [0]}
    plain, odd = (
        backbone.collate(pixels(backbone)[:1], [f"what{mark}?"], answers=[f"yes{mark}"], **more)
        for mark in ("", "<image>")
    )
    assert torch.equal(plain["input_ids"], odd["input_ids"])


def test_long_questions_are_cut_and_the_prompt_is_not(loaded):
    backbone = loaded("smolvlm")
    text = " ".join(["what colour is the dog"] * 20)
    given = backbone.collate(pixels(backbone)[:1], [text], prompt="{question} In a word.", longest=7)
    shown = backbone.tokenizer.decode(given["input_ids"][0])
    kept = backbone.tokenizer(text, add_special_tokens=False).input_ids[:7]
    assert f"{backbone.tokenizer.decode(kept)} In a word.<end_of_utterance>" in shown
