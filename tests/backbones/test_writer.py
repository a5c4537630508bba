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
    ids, types, mark = batch["input_ids"], backbone.kind.types, backbone.model.config.image_token_id
    tensors = backbone.pictures.read([[picture]]).tensors
    start, ends = ids.shape[1], {backbone.chat.around.end, *backbone.model.generation_config.eos_token_id}
    while ids.shape[1] - start < most and ids[0, -1].item() not in ends:
        more = (
            {types: torch.cat([batch[types], (ids[:, start:] > -1).long() * ("mm" not in types)], 1)} if types else {}
        )
        logits = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), **tensors, **more).logits
        logits[..., mark] = -torch.inf  # pictures are not written
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
    assert len(set(expected)) > 1
    tensors = backbone.pictures.read([[picture] for picture in PICTURES]).tensors
    assert len(seen) == 1 and torch.equal(seen[0]["pixel_values"], tensors["pixel_values"])  # no picture twice
    beams = backbone.write(batch, beams=3, longest=6)
    for number, (question, place) in enumerate(zip(QUESTIONS, WHICH, strict=True)):
        alone = collate(backbone, [PICTURES[place]], [question])
        assert backbone.write(alone, beams=3, longest=6) == [beams[number]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_at_the_model_has_its_size_and_merges(kind, folders, tmp_path):
    backbone = load_backbone(folders(kind), task="vqa")
    before, wide = backbone.losses(both(backbone)).detach(), dict(backbone.model.named_modules())
    targets = default_targets(backbone.model.config.model_type)
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


SLOW = [pytest.param(kind, marks=() if kind == "smolvlm" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", SLOW)
def test_twenty_questions_are_learned_by_heart(kind, folders):
    backbone = load_backbone(folders(kind), task="vqa")
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 32})
    dataset, task = asked(backbone), VQA(backbone, VQASettings(max_answer_tokens=6))
    view, steps, rate = backbone.view(), 90, 3e-2
    batch = task.collate([{"pixels": view(dataset.image(row)), **rest} for row, rest in task.examples(dataset)])
    weights = [weight for _, weight in task.train().trained()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        task(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (1 - step / steps))
        optimizer.step()
    assert task.evaluate(dataset)[0]["accuracy"] >= 95


def test_the_benchmark_from_the_command_line(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = benchmarks.vqav2(tmp_path / "data")
    fields = [f"model={folders('qwen2_5_vl')}", "train.precision=fp32", "train.max_steps=20", "train.batch_size=8"]
    fields += ["train.evaluations=1", "train.learning_rate=2e-2", "train.workers=0", "method_options.r=16"]
    fields += ["image_size=56", "task.max_answer_tokens=5"]
    words = [*fields, "--root", str(root), "--quiet"]
    assert main(["train", "vqav2-writer", *words, "--out", "run"]) == 0, capsys.readouterr().err
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/losses.jsonl").read_text().splitlines()]
    assert len(losses) == 20 and sum(losses[-4:]) < 0.75 * sum(losses[:4])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["weights"]["heads"] == 0 and metrics["test"] == {}  # its right answers are not published
    upload = json.loads((tmp_path / "run/vqa_upload.json").read_text())
    assert len(upload) == 24 and all(isinstance(row["answer"], str) for row in upload)
    recipe = load_recipe(tmp_path / "run/recipe.yaml")
    assert recipe.task.inference == "generate" and recipe.task.prompt.startswith("{question} Answer")
    assert main(["evaluate", "run", "--split", "validation", "--json", "found.json"]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert found["accuracy"] == pytest.approx(metrics["validation_best"])
    capsys.readouterr()
    assert main(["train", "vqav2", *words, "--out", "other"]) != 0
    assert "task.inference is rank, but" in (told := capsys.readouterr().err) and "set task.inference=generate" in told


# What a model reads


def test_training_views_keep_pictures_whole_in_shape_and_are_drawn_from_the_seed(loaded):
    backbone, picture = loaded("qwen2_5_vl"), draw("cross", "green", 96).resize((90, 60))
    plain = backbone.view()(picture)
    assert torch.equal(plain, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    views = [backbone.view(training=True)(picture, random.Random(seed)) for seed in (0, 1, 0)]
    assert torch.equal(views[0], views[2]) and views[0].shape != views[1].shape
    assert all(0.45 <= view[0].numel() / plain[0].numel() <= 1 for view in views)


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


@torch.no_grad()
def test_a_frozen_base_in_bfloat16_has_an_adapter_in_float32(folders):
    backbone = load_backbone(folders("qwen2_5_vl"), task="vqa", dtype=torch.bfloat16)
    apply_method(backbone, "aurora", {"r": 4})
    task = VQA(backbone)
    assert {weight.dtype for _, weight in task.trained()} == {torch.float32}
    assert backbone.model.lm_head.weight.dtype == torch.bfloat16
    whole = load_backbone(folders("qwen2_5_vl"), task="vqa")
    assert torch.allclose(backbone.losses(both(backbone)), whole.losses(both(whole)), rtol=0.05)
    assert len(backbone.write(collate(backbone, which=WHICH), beams=1, longest=3)) == 3


# What is refused, before a picture is decoded


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
    with pytest.raises(AuroraError, match="is of family LLaVA, which does not do 'retrieval'"):
        load_backbone(folders("llava"))
    with pytest.raises(AuroraError, match="a picture of 4000 x 4 pixels cannot be read by this model"):
        collate(loaded("qwen2_5_vl"), [Image.new("RGB", (4000, 4))], QUESTIONS[:1])
