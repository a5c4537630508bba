"""The `aurora` command: what it prints, and the one line in which every wrong use ends."""

import csv
import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import BlipConfig

from aurora_petl import devices, training
from aurora_petl.adapter import adapter_size
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, save_adapter
from aurora_petl.cli import main
from aurora_petl.recipe import load_recipe, recipe_names
from aurora_petl.tasks.retrieval import Retrieval
from tests.helpers.pictures import draw, make_folder

BLIP_MINI = [(192, 576, 3)] * 6 + [(192, 192, 1)] * 4 * 6  # (in, out, slices); text layers attend to self and picture


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder, so that a default --out of runs/ would show."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refusal(capsys):
    """Runs the command, which must fail with one line on stderr and nothing on stdout; the line."""

    def run(*words: object) -> str:
        try:
            status = main(list(map(str, words)))
        except SystemExit as stop:  # argparse
            status = stop.code
        out, err = capsys.readouterr()
        assert status in (1, 2) and not out
        assert err.count("\n") == 1 and re.match(r"aurora( \w+)?: error: ", err)
        return err.split("error: ", 1)[1].rstrip("\n")

    return run


@pytest.fixture
def printed(capsys):
    """Runs the command, which must succeed; what it printed."""

    def run(*words: object) -> str:
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().out

    return run


def shell(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aurora_petl.cli", *map(str, words)], capture_output=True, text=True)


def row(out: str, name: str) -> list[str]:
    """Cells of the table row called ``name``."""
    return next(line for line in out.splitlines() if line.startswith(f"{name} "))[len(name) :].split()


def cells(figures: dict, metric: str) -> list[str]:
    """Words of a metric's row by both protocols."""
    found = []
    for protocol in ("metrics", "itc_only"):
        value, (low, high) = figures[protocol][metric], figures["intervals"][protocol][metric]
        found += [f"{value:.1f}", f"[{low:.1f},", f"{high:.1f}]"]
    return found


def tuned(folder: Path, out: Path, method: str) -> Path:
    """A run's folder with an adapter that nothing trained."""
    recipe = load_recipe(None, [f"data={folder}", f"method={method}"])
    backbone = load_backbone(recipe.model)
    apply_method(backbone, method)
    torch.manual_seed(0)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn_like(weight))
    out.mkdir()
    recipe.save(out / "recipe.yaml")
    save_adapter(backbone, out / "adapter")
    return out


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    return {method: tuned(folder, path / method, method) for method in ("aurora", "heads")}


# Data that is wrong


def with_line(folder: Path, number: int, line: str) -> None:
    file = folder / "captions.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines))


def without_a_picture(folder: Path) -> None:
    (folder / "images/3.png").unlink()


def with_a_truncated_jpeg(folder: Path) -> None:
    path = folder / "images/1.jpg"
    draw("circle", "green").save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with_line(folder, 2, '{"image": "images/1.jpg", "caption": "x", "split": "validation"}')


def with_an_empty_caption(folder: Path) -> None:
    with_line(folder, 3, '{"image": "images/2.png", "caption": " ", "split": "train"}')


def with_a_line_of_python(folder: Path) -> None:
    with_line(folder, 5, "{'image': 'images/4.png'}")


def without_a_test_split(folder: Path) -> None:
    file = folder / "captions.jsonl"
    file.write_text(file.read_text().replace('"test"', '"train"'))


BROKEN = {
    without_a_picture: "mine/captions.jsonl, line 4: picture images/3.png is missing from ",
    with_a_truncated_jpeg: "mine/captions.jsonl, line 2: images/1.jpg: the picture is broken (",
    with_an_empty_caption: "mine/captions.jsonl, line 3: empty caption for images/2.png; write one or remove the row",
    with_a_line_of_python: "mine/captions.jsonl, line 5: not JSON (",
    without_a_test_split: "mine: no rows of split 'test' (it has train 18, validation 6); name it in",
}


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_wrong_data_stops_before_anything_is_written(breaking, dry, refusal, tmp_path, here):
    folder = make_folder(tmp_path / "mine")
    breaking(folder)
    assert refusal("train", "--data", folder, "--out", here / "run", *dry).startswith(BROKEN[breaking])
    assert not list(here.iterdir())


def test_a_shell_sees_one_line_and_the_status(tmp_path):
    folder = make_folder(tmp_path / "mine")
    with_a_truncated_jpeg(folder)
    done = shell("train", "--data", folder)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"aurora: error: {BROKEN[with_a_truncated_jpeg]}") and done.stderr.count("\n") == 1


# Words that are wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "nothing to train on: name a recipe (aurora recipes lists them) or give --data FOLDER"),
        ("train photos-mini", "no data named; give --data FOLDER or an embedded pack (fluent-contrast, fluent-flat, "),
        ("train --data coco", "coco is a benchmark whose files you have; give their folder with --root FOLDER"),
        (
            "train --data coco --root nowhere",
            "coco: there is no folder nowhere; give the benchmark's folder with --root",
        ),
        (
            "train --data nowhere",
            "no dataset 'nowhere': it is neither an embedded pack (fluent-contrast, fluent-flat, ",
        ),
        (
            "train emojy",
            f"no recipe 'emojy': name one of {', '.join(recipe_names())} or a .yaml file; did you mean emoji",
        ),
        ("train emoji train.lernrate=1", "recipe emoji: there is no field train.lernrate; did you mean train.learning"),
        ("train emoji train.max_steps", "override 'train.max_steps' is not of the form key=value"),
        ("train emoji --quiet train.zzz=1", "recipe emoji: there is no field train.zzz; fields are learning_rate, "),
        ("train emoji --method lorra", "recipe emoji: no method 'lorra'; did you mean lora?"),
        ("train emoji --model ./gone", "no model './gone': it is neither embedded (blip-mini), nor a folder"),
        (
            "train emoji --model . --dry-run",
            "model folder . has no config.json; name a folder saved by save_pretrained",
        ),
        ("train --resume", "runs/photos holds no run to resume; leave out --resume to start one"),
        ("train --resume --out gone", "gone holds no run to resume; leave out --resume to start one"),
        ("train emoji --resume", "--resume takes the run's own recipe: give --out only, no recipe and no overrides"),
        ("evaluate gone", "gone holds no run: it has no recipe.yaml"),
        ("params gone", "no model 'gone': it is neither embedded (blip-mini), nor a folder on this machine"),
        ("params blip-mini --core full-ish", "method_options.core is 'full-ish'; choose diagonal or full"),
        ("params blip-mini --gate open", "method_options.gate is 'open'; choose scale_shift or released"),
        ("params blip-mini --r 0", "method_options.r is 0; it must lie between 1 and 8192"),
    ],
)
def test_wrong_values(words, message, refusal, here):
    assert refusal(*words.split()).startswith(message)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train emoji --otu x", "unknown option --otu x; did you mean --out? (see aurora train --help)"),
        ("train emoji --modle=x", "unknown option --modle=x; did you mean --model? (see aurora train --help)"),
        ("train emoji --zzzz", "unknown option --zzzz (see aurora train --help)"),
        ("evaluate run --splt test", "unknown option --splt test; did you mean --split? (see aurora evaluate --help)"),
        ("params blip-mini --core=full --rr 4", "unknown option --rr 4; did you mean --r? (see aurora params --help)"),
        (
            "train emoji --lr 1e-3",
            "unknown option --lr 1e-3; did you mean train.learning_rate=1e-3? (see aurora train --help)",
        ),
        ("train emoji --lr=1", "unknown option --lr=1; did you mean train.learning_rate=1? (see aurora train --help)"),
        (
            "train --batch-size",
            "unknown option --batch-size; did you mean train.batch_size=...? (see aurora train --help)",
        ),
        (
            "train emoji --beta=2 --quiet",
            "unknown option --beta=2; did you mean task.beta=2? (see aurora train --help)",
        ),
        ("params blip-mini more", "one word too many: more (see aurora params --help)"),
        ("search \udcff", "argument TEXT: the text is not UTF-8 (see aurora search --help)"),
        ("train --ab\udcff", "unknown option --ab\\udcff (see aurora train --help)"),
        ("demo --sed 1", "unknown option --sed 1; did you mean --seeds? (see aurora demo --help)"),
        ("--hlp", "unknown option --hlp; did you mean --help? (see aurora --help)"),
        ("params blip-mini --r x", "argument --r: invalid int value: 'x' (see aurora params --help)"),
        ("train emoji --out", "argument --out: expected one argument (see aurora train --help)"),
        ("evaluate", "the following arguments are required: RUN (see aurora evaluate --help)"),
    ],
)
def test_wrong_options(words, message, refusal):
    assert refusal(*words.split()) == message


def test_unknown_command(refusal):
    message = refusal("trian")
    assert "'trian'" in message and "did you mean train?" in message
    assert all(name in message for name in ("demo", "train", "evaluate", "params", "recipes"))


def test_a_shell_sees_status_2_for_an_unknown_option():
    done = shell("train", "--ressume")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
        "aurora train: error: unknown option --ressume; did you mean --resume? (see aurora train --help)\n"
    )


# Folders that are taken


def test_an_output_folder_that_holds_a_run(refusal, runs, folder):
    for dry in ([], ["--dry-run"]):
        message = refusal("train", "--data", folder, "--out", runs["heads"], *dry)
        assert message == f"{runs['heads']} already holds a run; name another --out, or continue it with --resume"


def test_an_output_folder_that_holds_other_files(refusal, folder):
    assert refusal("train", "emoji", "--out", folder).startswith(f"{folder} already holds files; name another --out")


@pytest.mark.parametrize("words", ["train emoji", "demo"])
def test_an_output_folder_that_is_a_file(words, refusal, folder):
    file = folder / "captions.jsonl"
    assert refusal(*words.split(), "--out", file) == f"{file} is a file; name a folder with --out"
    assert "Not a directory" in refusal("demo", "--out", file / "run")
    assert file.is_file()


# Evaluating


def test_evaluate_refuses_an_unknown_split_and_unknown_data(refusal, runs):
    message = refusal("evaluate", runs["heads"], "--split", "tset")
    assert message.startswith("shapes: no rows of split 'tset' (it has train 12, validation 6, test 6)")
    assert refusal("evaluate", runs["heads"], "--data", "nowhere").startswith("no dataset 'nowhere'")


def test_nothing_to_merge(refusal, runs):
    message = refusal("evaluate", runs["heads"], "--merge")
    assert message == f"{runs['heads']} was tuned by heads, which has nothing to merge"


def test_evaluate_refuses_a_run_that_did_not_finish(refusal, here):
    load_recipe().save(here / "recipe.yaml")
    message = refusal("evaluate", ".")
    assert message == "adapter has no adapter_model.safetensors; the run did not finish, continue it with --resume"


def test_merged_or_not_the_figures_are_the_same(printed, runs, here):
    apart = printed("evaluate", runs["aurora"], "--json", "deep/apart.json")
    assert printed("evaluate", runs["aurora"], "--merge", "--json", "merged.json") == apart
    found = json.loads((here / "merged.json").read_text())
    assert found == json.loads((here / "deep/apart.json").read_text())
    assert [name.strip() for name in apart.splitlines()[0].split("  ") if name] == ["ITC, ITM rerank", "ITC only"]
    assert row(apart, "T R@5") == cells(found, "text_recall@5")
    assert row(apart, "I MedR") == cells(found, "image_median_rank")


def test_evaluate_on_another_split_and_other_data(printed, runs, tmp_path, monkeypatch):
    seen, score = [], Retrieval.evaluate
    monkeypatch.setattr(
        Retrieval, "evaluate", lambda task, split, **rest: seen.append((split.name, len(split))) or score(task, split)
    )
    other = make_folder(tmp_path / "other", 8)
    for words in ([], ["--data", other], ["--data", other, "--split", "train"]):
        printed("evaluate", runs["aurora"], *words)
    assert seen == [("shapes/test", 6), ("other/test", 2), ("other/train", 4)]


# Help, recipes, weights


def test_no_command_prints_help(printed):
    assert printed().startswith("usage: aurora")


def test_recipes_are_listed_with_what_they_are_for(printed):
    expected = []
    for name in recipe_names():
        recipe = load_recipe(name)
        expected += [[name, recipe.about]] + ([["needs", recipe.needs]] if recipe.needs else [])
    assert [line.split(maxsplit=1) for line in printed("recipes").splitlines()] == expected


@pytest.mark.parametrize("options", [{}, {"r": 8}, {"r": 8, "core": "full"}])
def test_params_of_blip_mini(options, printed):
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    found = row(printed("params", "blip-mini", *words), "adapter")
    assert found[0] == f"{adapter_size(BLIP_MINI, **{'r': 64} | options):,}"


def test_params_with_context_and_gates(printed):
    plain = adapter_size(BLIP_MINI, r=64)
    added = 4 * (4 * 192 + 2) + 1
    out = printed("params", "blip-mini", "--context", "batch", "--gate", "scale_shift")
    assert out.startswith("Aurora, r=64, core=diagonal, context=batch, gate=scale_shift, on blip-mini\n")
    assert row(out, "adapter")[0] == f"{plain + added:,}"
    assert row(out, "  its factors")[0] == f"{plain:,}"
    assert row(out, "  context and gates")[0] == f"{added:,}"
    assert "context and gates" not in printed("params", "blip-mini")


@pytest.mark.parametrize("words", [[], ["--context", "batch", "--gate", "scale_shift"]])
def test_params_tell_the_size_of_the_file(words, printed, tmp_path):
    out = printed("params", "blip-mini", *words)
    backbone = load_backbone("blip-mini")
    apply_method(backbone, "aurora", dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True)))
    save_adapter(backbone, tmp_path / "adapter")
    size = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    told = float(re.search(r"the saved file: (\d+) KB", out)[1]) * 1e3
    assert 0 <= size - told < 16_000  # the file's head names every tensor


def test_params_of_a_configuration_without_weights(printed, tmp_path):
    BlipConfig(text_config={"num_attention_heads": 12}).save_pretrained(tmp_path / "base")
    out = printed("params", tmp_path / "base")
    assert row(out, "adapter")[0] == "105,280"
    assert row(out, "model")[1] == "100.000%"
    assert [file.name for file in (tmp_path / "base").iterdir()] == ["config.json"]


# Training


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


@pytest.mark.parametrize("command", ["train emoji", "evaluate RUN", "demo", "index . --model blip-mini", "search x"])
@pytest.mark.parametrize(("device", "message"), [("tpu", "no device 'tpu'; "), ("cuda:77", "device cuda:77: this ")])
def test_a_device_that_is_not_there(command, device, message, refusal, runs, here):
    words = command.replace("RUN", str(runs["heads"])).split()
    assert refusal(*words, "--device", device).startswith(message)
    assert not list(here.iterdir())


def test_the_device_is_used(printed, runs, monkeypatch):
    used = []
    monkeypatch.setattr(devices, "use", used.append)
    printed("evaluate", runs["heads"], "--device", "cpu", "--no-cache")
    assert used == ["cpu"]


def test_a_small_split_is_told_with_what_it_is_worth(printed, runs):
    out = printed("evaluate", runs["heads"], "--no-cache")
    told = "caution: 6 test pictures cannot tell a gain of T R@1 below 100.0 points from chance"
    assert out.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --strength 1.5", "--strength is 1.5; it must lie between 0, the untuned model, and 1"),
        ("RUN --strength nan", "--strength is nan; it must lie between 0"),
        ("RUN --strength 0 --merge", "--merge has nothing to merge at --strength 0, the untuned model"),
        ("RUN --strength 0.5", "RUN: the weights that its training began with cannot be drawn again here"),
        ("RUN RUN RUN", "aurora evaluate takes one run, or two to compare; 3 are given"),
        ("RUN RUN --also fluent-flat", "--also is for one run; leave it out, or name one run"),
        ("RUN RUN --zero-shot", "--zero-shot is for one run; leave it out, or name one run"),
        ("RUN RUN --upload x.json", "--upload is for one run; leave it out, or name one run"),
        ("RUN gone", "gone holds no run: it has no recipe.yaml"),
        ("RUN other", "RUN was trained on "),
        ("RUN questions", "RUN is of task retrieval and questions of vqa; compare runs of one task"),
        ("RUN --also coco", "--also takes a folder, a .tar or an embedded pack, and coco is a benchmark; see --data"),
        ("RUN --also nowhere", "no dataset 'nowhere'"),
        ("RUN --queries .", ". is a folder, not a file; name another file"),
    ],
)
def test_scores_that_cannot_be_compared(words, message, refusal, runs, here):
    for name, field in (("other", "data=fluent-flat"), ("questions", "task.name=vqa")):
        (here / name).mkdir()
        load_recipe(None, [field]).save(here / name / "recipe.yaml")
    run = str(runs["aurora"])
    assert refusal("evaluate", *(run if word == "RUN" else word for word in words.split())).startswith(
        message.replace("RUN", run)
    )
