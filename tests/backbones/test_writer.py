"""Decoder models against transformers' own processors, losses and words, written out one question at a time."""

from __future__ import annotations

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm import processing_smolvlm

from aurora_petl.adapter import adapter_size
from aurora_petl.adapter.targets import default_targets
from aurora_petl.backbones import is_ranker, load_backbone
from aurora_petl.backbones.families import FAMILIES
from aurora_petl.baselines import apply_method, load_adapter, save_adapter
from aurora_petl.cli import main
from aurora_petl.data.rows import Question, QuestionDataset
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.settings import VQASettings
from aurora_petl.tasks.vqa import VQA
from aurora_petl.training import prepare
from tests.helpers import benchmarks
from tests.helpers.pictures import COLOURS, SHAPES, draw
from tests.helpers.writers import WRITERS, make

KINDS = tuple(WRITERS)
PICTURES = [draw("circle", "red", 96), draw("square", "blue", 64).resize((80, 44))]
ASKED = [  # question, its picture, answers
    ("what colour is it?", 0, ["red", "a red circle"]),
    ("is it a circle?", 0, ["yes"]),
    ("what shape is it, and is there a dog in the picture?", 1, ["square", "no", "a photo of one square"]),
]
QUESTIONS, WHICH = [row[0] for row in ASKED], [row[1] for row in ASKED]
ANSWERS = [(number, answer) for number, row in enumerate(ASKED) for answer in row[2]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of the tiny models, by family, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("writers"), {}
    return lambda kind: made.setdefault(kind, None) or made.update({kind: make(kind, root / kind)}) or made[kind]


@pytest.fixture(scope="session")
def loaded(folders):
    """The models as they are, which no test changes."""
    made = {}
    return lambda kind: made.get(kind) or made.setdefault(kind, load_backbone(folders(kind), task="vqa"))


def pixels(backbone, pictures=PICTURES):
    return [backbone.view()(picture) for picture in pictures]


def collate(backbone, pictures=PICTURES, questions=QUESTIONS, **more):
    return backbone.collate(
        pixels(backbone, pictures), questions, prompt=backbone.defaults["prompt"], longest=100, **more
    )


def both(backbone):
    """The batch of all answers, a picture once for its questions."""
    answers = [answer for _, answer in ANSWERS]
    return collate(backbone, which=WHICH, answers=answers, of=[number for number, _ in ANSWERS])


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
    return made(images, tokenizer, video_processor=SimpleNamespace(), **rest)


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
            rows = [each.masked_fill(padded, 0) if "type" in name else each for each in (found[name], ours[name])]
            assert torch.equal(*rows)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_losses_are_transformers_own_with_labels_on_the_answers(kind, loaded):
    """Its forward pass gets every picture as often as it is asked about, and makes the loss of its own labels."""
    backbone = loaded(kind)
    batch = both(backbone)
    losses = backbone.losses(batch)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (start, length) in enumerate(zip(batch["prompt_lengths"], batch["answer_lengths"], strict=True)):
        labels[row, start : start + length] = batch["input_ids"][row, start : start + length]
        written = backbone.tokenizer.decode(labels[row, start : start + length], skip_special_tokens=True)
        assert written.strip() == ANSWERS[row][1]
        assert labels[row, start + length - 1] == backbone.chat.around.end
        assert batch["attention_mask"][row].sum() == start + length
    shown = [[PICTURES[WHICH[number]]] for number, _ in ANSWERS]
    names = ("input_ids", "attention_mask", backbone.kind.types)
    arguments = backbone.pictures.read(shown).tensors | {name: batch[name] for name in names if name}
    theirs = backbone.model(**arguments, labels=labels).loss
    assert losses.sum().item() / sum(batch["answer_lengths"]) == pytest.approx(theirs.item(), rel=1e-5)
    for row, (number, answer) in enumerate(ANSWERS[:3]):
        alone = collate(backbone, [PICTURES[WHICH[number]]], [QUESTIONS[number]], answers=[answer], of=[0])
        assert losses[row].item() == pytest.approx(backbone.losses(alone).item(), rel=1e-5)


@torch.no_grad()
def words_of(backbone, picture, question, most):
    """Greedy words of one question, by whole forward passes without a cache."""
    batch = collate(backbone, [picture], [question])
    ids, types = batch["input_ids"], backbone.kind.types
    tensors = backbone.pictures.read([[picture]]).tensors
    start, ends = ids.shape[1], {backbone.chat.around.end, *backbone.model.generation_config.eos_token_id}
    while ids.shape[1] - start < most and ids[0, -1].item() not in ends:
        more = {types: torch.cat([batch[types], (ids[:, start:] > -1).long() * ("mm" not in types)], 1)} if types else {}
        logits = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), **tensors, **more).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return backbone.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_likeliest_words_and_do_not_mind_company(kind, loaded, monkeypatch):
    backbone, seen = loaded(kind), []
    expected = [words_of(backbone, PICTURES[place], text, 6) for text, place in zip(QUESTIONS, WHICH, strict=True)]
    batch = collate(backbone, which=WHICH)
    encode = backbone.model.get_image_features
    monkeypatch.setattr(backbone.model, "get_image_features", lambda **given: seen.append(given) or encode(**given))
    assert backbone.write(batch, beams=1, longest=6) == expected
    assert len(set(expected)) > 1 or kind == "paligemma"
    assert len(seen) == 1 and torch.equal(seen[0]["pixel_values"], backbone.pictures.read([[p] for p in PICTURES]).tensors["pixel_values"])
    beams = backbone.write(batch, beams=3, longest=6)
    for number, (question, place) in enumerate(zip(QUESTIONS, WHICH, strict=True)):
        alone = collate(backbone, [PICTURES[place]], [question])
        assert backbone.write(alone, beams=3, longest=6) == [beams[number]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_at_the_model_has_its_size_and_merges(kind, folders, tmp_path):
    backbone = load_backbone(folders(kind), task="vqa")
    before, wide = backbone.losses(both(backbone)).detach(), dict(backbone.model.named_modules())
    targets = [name for name in default_targets(backbone.model.config.model_type)]
    layers = [(name, layer) for name, layer in wide.items() if isinstance(layer, nn.Linear)]
    layers = [(name, layer) for name, layer in layers if name.rpartition(".")[2] in targets]
    shapes = [(layer.in_features, layer.out_features, 3 if name.endswith("qkv") else 1) for name, layer in layers]
    assert any("vis" in name for name, _ in layers) and any("language" in n or "text_model" in n for n, _ in layers)
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 4})
    task = VQA(backbone)
    assert sum(weight.numel() for _, weight in task.trained()) == adapter_size(shapes, 4)
    assert torch.equal(backbone.losses(both(backbone)), before)
    task.train()
    loss = backbone.losses(both(backbone)).sum()
    loss.backward()
    for _, weight in task.trained():
        weight.data += 0.3 * torch.randn_like(weight)
    task.eval()
    with torch.no_grad():
        tuned = backbone.losses(both(backbone))
        assert not torch.allclose(tuned, before, atol=1e-2)
        save_adapter(backbone, tmp_path / "adapter")
        backbone.adapter.merge_adapter()
        assert torch.allclose(backbone.losses(both(backbone)), tuned, atol=1e-4)
        fresh = load_backbone(folders(kind), task="vqa")
        load_adapter(fresh, tmp_path / "adapter", "aurora")
        assert torch.allclose(fresh.losses(both(fresh)), tuned, atol=1e-5)


def asked(backbone, count=20):
    """Questions about drawn shapes as a dataset in memory, its pictures by name."""
    names = [(shape, colour) for shape in SHAPES for colour in COLOURS][: count // 2]
    items = []
    for number, (shape, colour) in enumerate(names):
        for text, answer in (("what colour is it?", colour), ("what shape is it?", shape)):
            items.append(Question(str(number), text, (answer,), (1.0,), str(len(items)), "train", len(items) + 1))
    pictures = {str(number): draw(shape, colour, 56) for number, (shape, colour) in enumerate(names)}

    class Drawn(QuestionDataset):
        def image(self, index):
            return pictures[self.items[index].image]

    return Drawn("drawn", items, None)


SLOW = [pytest.param(kind, marks=() if kind == "qwen2_5_vl" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", SLOW)
def test_twenty_questions_are_learned_by_heart(kind, folders):
    backbone = load_backbone(folders(kind), task="vqa")
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 16})
    dataset, task = asked(backbone), VQA(backbone, VQASettings(max_answer_tokens=6))
    view = backbone.view()
    rows = [{"pixels": view(dataset.image(row)), **rest} for row, rest in task.examples(dataset)]
    optimizer = torch.optim.AdamW([weight for _, weight in task.trained()], lr=3e-2, weight_decay=0)
    batch = task.train().collate(rows)
    for step in range(120):
        loss = task(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([weight for _, weight in task.trained()], 1.0)
        optimizer.param_groups[0]["lr"] = 3e-2 * min(1, 2 * (1 - step / 120))
        optimizer.step()
    assert task.evaluate(dataset)[0]["accuracy"] >= 95
