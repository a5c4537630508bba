"""Decoder models against transformers' own losses and words, written out one question at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from aurora_petl.adapter import adapter_size
from aurora_petl.adapter.targets import default_targets
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, load_adapter, save_adapter
from aurora_petl.cli import main
from aurora_petl.data.rows import Question, QuestionDataset
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.settings import VQASettings
from aurora_petl.tasks.vqa import VQA
from aurora_petl.training import prepare, train
from tests.helpers import benchmarks
from tests.helpers.pictures import COLOURS, SHAPES, draw

from .asked import ANSWERS, KINDS, PICTURES, QUESTIONS, WHICH, both, collate


def tensors_of(backbone, media):
    """What transformers' model reads of pictures."""
    return {name: torch.as_tensor(part) for name, part in backbone.pictures.read(media).tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_losses_are_transformers_own_with_labels_on_the_answers(kind, loaded):
    """Its forward pass gets every picture as often as it is asked about, and makes the loss of its own labels."""
    backbone = loaded(kind)
    batch = both(backbone)
    losses = backbone.losses(batch)
    labels = torch.full_like(batch["input_ids"], -100)
    lengths = [(seats < len(batch["answer_places"])).sum() for seats in batch["answer_seats"]]
    for row, (seats, length) in enumerate(zip(batch["answer_seats"], lengths, strict=True)):
        start = batch["answer_places"][seats[0]] - row * labels.shape[1]
        labels[row, start : start + length] = batch["input_ids"][row, start : start + length]
        written = backbone.tokenizer.decode(labels[row, start : start + length], skip_special_tokens=True)
        assert written.strip() == ANSWERS[row][1]
        assert labels[row, start + length - 1] == backbone.chat.around.end
        assert batch["attention_mask"][row].sum() == start + length
    shown = [[PICTURES[WHICH[number]]] for number, _ in ANSWERS]
    names = ("input_ids", "attention_mask", backbone.kind.types)
    arguments = tensors_of(backbone, shown) | {name: batch[name] for name in names if name}
    theirs = backbone.model(**arguments, labels=labels).loss
    assert losses.sum().item() / sum(lengths) == pytest.approx(theirs.item(), rel=1e-5)
    for row, (number, answer) in enumerate(ANSWERS[:3]):
        alone = collate(backbone, [PICTURES[WHICH[number]]], [QUESTIONS[number]], answers=[answer], of=[0])
        assert losses[row].item() == pytest.approx(backbone.losses(alone).item(), rel=1e-5)


@torch.no_grad()
def words_of(backbone, picture, question, most):
    """Greedy words of one question, by whole forward passes without a cache."""
    batch = collate(backbone, [picture], [question])
    ids, types, mark = batch["input_ids"], backbone.kind.types, backbone.model.config.image_token_id
    tensors = tensors_of(backbone, [[picture]])
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
        def image(self, index, least=0):
            return pictures[self.items[index].image]

    return Drawn("drawn", items, None)


SLOW = [pytest.param(kind, marks=() if kind == "smolvlm" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", SLOW)
def test_twenty_questions_are_learned_by_heart(kind, folders):
    backbone = load_backbone(folders(kind), task="vqa")
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 32})
    dataset, task = asked(backbone), VQA(backbone, VQASettings(max_answer_tokens=6))
    view, steps, rate = backbone.view(), 90 if kind == "smolvlm" else 180, 3e-2
    batch = task.collate([{"pixels": view(dataset.image(row)), **rest} for row, rest in task.examples(dataset)])
    weights = [weight for _, weight in task.train().trained()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        task(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (1 - step / steps))
        optimizer.step()
    assert task.evaluate(dataset).metrics["accuracy"] >= 95


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


def test_a_run_in_bfloat16_keeps_the_frozen_model_in_it(folders, tmp_path, monkeypatch, capsys):
    """Where everything trains, all is in float32; what is saved is in float32 in any case."""
    monkeypatch.chdir(tmp_path)
    root = benchmarks.vqav2(tmp_path / "data")
    fields = [f"model={folders('smolvlm')}", "train.precision=bf16", "train.max_steps=2", "train.batch_size=4"]
    fields += ["train.evaluations=1", "train.workers=0", "image_size=28", "task.max_answer_tokens=2", f"root={root}"]
    full = load_recipe("vqav2-writer", [*fields, "method=full", "method_options={}"])
    assert prepare(full, check=False).backbone.model.dtype == torch.float32
    run = train(load_recipe("vqav2-writer", [*fields, "method_options.r=4"]), tmp_path / "run", progress=False)
    frozen = {weight.dtype for weight in run.backbone.module.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16} and {weight.dtype for _, weight in run.task.trained()} == {torch.float32}
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/losses.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
