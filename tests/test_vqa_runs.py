"""Whole runs of question answering through the command line: overfitting, breaking off and resuming, scoring."""

import json

import pytest
import torch
from safetensors.torch import load_file

import aurora_petl
from aurora_petl import data, scoring, training
from aurora_petl.backbones import load_backbone
from aurora_petl.cli import main
from aurora_petl.data.rows import Question, QuestionDataset
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.vqa import VQA
from aurora_petl.training import train
from tests.helpers.pictures import make_questions
from tests.helpers.short_runs import Break

SMALL = [
    "train.precision=fp32",
    "data=colours",
    "task.name=vqa",
    "train.batch_size=6",
    "train.evaluations=2",
    "method_options.r=4",
]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return make_questions(tmp_path_factory.mktemp("questions") / "colours", 12)


@pytest.fixture(autouse=True)
def named(colours, monkeypatch, tmp_path):
    """``colours`` and, without answers in its test split, ``hidden`` are names of datasets."""
    bare = [
        Question(item.image, item.question, (), (), item.id, item.split, item.line) if item.split == "test" else item
        for item in colours
    ]
    hidden = QuestionDataset("hidden", bare, colours.files, candidates=colours.candidates)
    for module in (data, training, scoring):
        known = module.load_dataset
        monkeypatch.setattr(
            module,
            "load_dataset",
            lambda name, *rest, known=known: {"colours": colours, "hidden": hidden}.get(name) or known(name, *rest),
        )
    monkeypatch.chdir(tmp_path)


def test_overfits_its_training_questions(colours, tmp_path, capsys):
    """Questions, answers, pictures and loss line up: what was trained on is answered."""
    fields = ["train.batch_size=12", "train.max_steps=60", "train.learning_rate=3e-2", "train.evaluations=1"]
    fields += [
        "train.augment=false",
        "train.keep=best",
        "task.label_smoothing=0",
        "method_options.r=16",
        "train.weight_decay=0",
    ]
    assert main(["train", *SMALL, *fields, "--out", "run", "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["zero-shot", "tuned", "gain", "p"]
    assert [line.split()[0] for line in printed[2:5]] == ["accuracy", "yes/no", "other"]

    out = tmp_path / "run"
    held = {path.name for path in out.iterdir()}
    assert held - {".lock", "losses.jsonl"} == {
        "adapter",
        "answers.json",
        "metrics.json",
        "recipe.yaml",
        "history.json",
        "curve.png",
        "gallery.png",
    }
    assert load_recipe(out / "recipe.yaml").task.name == "vqa"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["test"]) == set(metrics["zero_shot_test"]) == {"accuracy", "yes/no", "other"}
    assert metrics["weights"]["heads"] == 0

    train_rows = colours.split("train")
    files = [colours.files.path / item.image for item in train_rows]
    answers = aurora_petl.load("run").answer(files, [item.question for item in train_rows])

    assert main(["evaluate", "run", "--split", "train", "--json", "found.json", "--upload", "up/answers.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["answers", "by", "rank"]
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert [line.split()[:2] for line in lines[2:5]] == [[name, f"{value:.1f}"] for name, value in found.items()]
    rows = json.loads((tmp_path / "up/answers.json").read_text())
    assert [row["answer"] for row in rows] == answers  # from Python alike
    assert found["accuracy"] >= 90
    asked = colours.split("train")
    right = [row["answer"] == item.answers[0] for row, item in zip(rows, asked, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(found["accuracy"])
    assert [row["question_id"] for row in rows] == [int(item.id) for item in asked]

    assert main(["evaluate", "run", "--merge", "--split", "train"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_broken_off_and_resumed_ends_with_the_same_weights(colours, tmp_path):
    options = ["method_options.context=batch", "method_options.gate=scale_shift"]
    fields = [*SMALL, *options, "train.max_steps=4", "train.learning_rate=3e-3"]
    whole = train(load_recipe(None, fields), tmp_path / "whole", progress=False)
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(None, fields), out, progress=False, callbacks=[Break()])
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    ours, theirs = (load_file(path / "adapter/adapter_model.safetensors") for path in (out, tmp_path / "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("text_decoder" in name and value.any() for name, value in ours.items())
    found = json.loads((out / "metrics.json").read_text())["test"]
    assert found == whole.metrics["test"]


def test_full_tuning_saves_tied_words_once_and_resumes(colours, tmp_path):
    fields = [*SMALL[:4], "method=full", "train.max_steps=2", "train.learning_rate=1e-4", "train.evaluations=2"]
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(None, fields), tmp_path / "run", progress=False, callbacks=[Break()])
    run = train(load_recipe(tmp_path / "run/recipe.yaml"), tmp_path / "run", resume=True, progress=False)
    recipe, backbone = training.load_run(tmp_path / "run")
    decoder = backbone.model.text_decoder
    assert decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    assert VQA(backbone, recipe.task).evaluate(colours.split("test")).metrics == run.metrics["test"]
    assert not torch.equal(
        decoder.bert.embeddings.word_embeddings.weight,
        load_backbone("blip-mini", task="vqa").model.text_decoder.get_input_embeddings().weight,
    )


def test_answers_of_a_split_without_right_ones_are_written_for_the_server(colours, tmp_path, capsys):
    fields = [*SMALL, "data=hidden", "train.max_steps=1", "train.evaluations=1", "task.inference=generate"]
    assert main(["train", *fields, "--out", "run", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("no scores: split test comes without right answers\n")
    rows = json.loads((tmp_path / "run/vqa_upload.json").read_text())
    assert [set(row) for row in rows] == [{"question_id", "answer"}] * 6
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test"] == {}
    assert main(["evaluate", "run"]) == 0
    assert "no scores: split test comes without right answers" in capsys.readouterr().out


def test_dry_run_counts_pictures_questions_and_answers(capsys):
    assert main(["train", *SMALL, "--dry-run", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["colours", "pictures", "questions", "answers"]
    assert [line.split() for line in lines[2:5]] == [
        ["train", "6", "12", "12"],
        ["validation", "3", "6", "6"],
        ["test", "3", "6", "6"],
    ]
    assert not any(line.startswith("heads") for line in lines)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["task.name=vqq"], "recipe photos-mini: task.name: no task 'vqq'; did you mean vqa?"),
        (["task.name=7"], "recipe photos-mini: task.name: no task 7; choose one of retrieval, vqa"),
        (
            ["task.queue_size=4"],
            "recipe photos-mini: there is no field task.queue_size; fields are name, frames",
        ),
        (
            ["data=fluent-flat"],
            "fluent-flat holds captions, but task vqa is about questions; task.name=retrieval is for these, or",
        ),
        (["method=heads"], "method heads: blip-mini has no heads for its task; choose another method"),
        (["train.batch_size=1"], "recipe photos-mini: train.batch_size is 1; it must lie between 2 and 65536"),
    ],
)
def test_wrong_runs_end_in_one_line(fields, message, capsys):
    assert main(["train", *[f for f in SMALL if "options" not in f], *fields, "--dry-run", "--quiet"]) == 1
    assert capsys.readouterr().err.startswith(f"aurora: error: {message}")


def test_params_of_each_task(capsys):
    weights = []
    for words in ([], ["--task", "vqa"]):
        assert main(["params", "blip-mini", "--r", "4", *words]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("adapter "))
        weights.append(int(line.split()[1].replace(",", "")))
    assert weights[1] - weights[0] == 4 * 4 * 6  # a row for each attention matrix of 4 decoder layers
    assert main(["params", "blip-mini", "--task", "captions"]) == 1
    assert "blip-mini is of family BLIP, which does retrieval, vqa, not task 'captions'" in capsys.readouterr().err


def test_recipes_without_a_task_are_retrieval():
    assert load_recipe("emoji").task.name == "retrieval"
    assert load_recipe(None, ["task.name=vqa", "task.k_test=5"]).task.k_test == 5
