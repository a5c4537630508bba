"""The command `aurora train --dry-run`: it says what would train, and trains nothing."""

import csv
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest

from aurora_petl import devices, training
from aurora_petl.recipe import load_recipe
from tests.helpers.commands import BLIP_MINI, row
from tests.helpers.pictures import make_folder


@pytest.fixture
def no_training(monkeypatch):
    """Recipes that came as far as `prepare`, with training forbidden."""
    seen = []
    prepare = training.prepare
    monkeypatch.setattr(
        training, "prepare", lambda recipe, **rest: seen.append(deepcopy(recipe)) or prepare(recipe, **rest)
    )
    monkeypatch.setattr(training, "train", lambda *args, **rest: pytest.fail("a dry run trained"))
    return seen


def test_dry_run_says_what_would_train_and_leaves_nothing(printed, no_training, folder, here):
    out = printed("train", "--data", folder, "--dry-run")
    assert [row(out, split) for split in ("train", "validation", "test")] == [["12", "24"], ["6", "12"], ["6", "12"]]
    assert row(out, "adapter")[0] == "33,865"  # with output and MLP layers, context and gates
    assert out.endswith(f"All checks passed; without --dry-run the run would go to {Path('runs/shapes')}\n")
    assert no_training == [load_recipe("photos-mini", [f"data={folder}"])]
    assert not list(here.iterdir())
    assert row(out, "recipe") == ["photos-mini"]
    assert row(out, "steps") == ["60,", "which", "is", "60", "epochs"]  # 24 captions make one batch
    assert row(out, "a step") == ["24", "pairs", "(batch", "24)"]
    assert row(out, "rates") == ["0.001,", "of", "heads", "0.0005"]
    assert row(out, "computes")[:3] == ["on", str(devices.choose()), "in"]
    assert re.search(r"^takes +about [\d.]+ (s|min|h), evaluations apart$", out, re.M)


def test_a_dry_run_says_what_overrides_change(printed, no_training, folder):
    words = ["train.batch_size=4", "train.gradient_accumulation=3", "train.head_learning_rate=0.1", "train.max_steps=7"]
    out = printed("train", "--data", folder, "--dry-run", "train.precision=fp32", *words)
    assert row(out, "a step") == ["12", "pairs", "(batch", "4,", "accumulation", "3)"]
    assert row(out, "steps")[0] == "7," and row(out, "rates")[-1] == "0.1" and row(out, "computes")[-1] == "fp32"
    out = printed("train", "--data", folder, "--dry-run", "--method", "zero-shot")
    assert "steps      none, zero-shot has nothing to learn" in out


def test_dry_run_of_a_csv(printed, no_training, tmp_path, here):
    folder = make_folder(tmp_path / "mine", 20, splits=False)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    (folder / "captions.jsonl").unlink()
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *([r["image"], text] for r in rows for text in r["caption"])])
    out = printed("train", "--data", folder, "--out", "run", "--dry-run")
    assert [row(out, split) for split in ("train", "validation", "test")] == [["10", "20"], ["5", "10"], ["5", "10"]]
    assert out.endswith("would go to run\n") and not list(here.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "method=lora method_options.r=5 train.seed=3 --data FOLDER --dry-run",
        "emoji --data FOLDER --dry-run train.seed=3 method_options.r=5 method=lora",  # after options as well
        "emoji method_options.r=5 --method lora --dry-run --data FOLDER train.seed=3 train.batch_size=8",
    ],
)
def test_overrides_reach_the_recipe(words, printed, no_training, folder):
    words = words.replace("FOLDER", str(folder))
    size = "train.batch_size=8"
    out = printed("train", *words.split(), *([] if size in words else [size]))
    (recipe,) = no_training
    assert (recipe.data, recipe.method, recipe.method_options) == (str(folder), "lora", {"r": 5})
    assert (recipe.train.seed, recipe.train.batch_size) == (3, 8)
    assert row(out, "adapter")[0] == f"{5 * sum(i + o for i, o, _ in BLIP_MINI):,}"


def test_a_recipe_of_ones_own_names_the_folder(printed, no_training, folder, here):
    (here / "mine.yaml").write_text(f"data: {folder}\nmethod: heads\n")
    assert printed("train", "mine.yaml", "--dry-run").endswith(f"would go to {Path('runs/mine')}\n")
