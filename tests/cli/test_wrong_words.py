"""Wrong words to the `aurora` command, and output folders that are taken: one line each."""

import pytest

from aurora_petl.recipe import recipe_names
from tests.helpers.commands import shell

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
        (
            "serve my.index",
            "one word too many: my.index; name an index with --index my.index (see aurora serve --help)",
        ),
        (
            "search red circle",
            "one word too many: circle; put a text of several words in quotes (see aurora search --help)",
        ),
        ("search \udcff", "argument TEXT: the text is not UTF-8 (see aurora search --help)"),
        ("train --ab\udcff", "unknown option --ab\\udcff (see aurora train --help)"),
        ("demo --sed 1", "unknown option --sed 1; did you mean --seeds? (see aurora demo --help)"),
        (
            "features photos --model runs/mine --out x.npz",
            "unknown option --model; it is given without --model: aurora features MODEL DATA "
            "(see aurora features --help)",
        ),
        (
            "evaluate --run runs/mine",
            "unknown option --run; it is given without --run: aurora evaluate RUN (see aurora evaluate --help)",
        ),
        ("search --query cat", "unknown option --query (see aurora search --help)"),
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


@pytest.mark.parametrize("command", ["train emoji", "evaluate RUN", "demo", "index . --model blip-mini", "search x"])
@pytest.mark.parametrize(("device", "message"), [("tpu", "no device 'tpu'; "), ("cuda:77", "device cuda:77: this ")])
def test_a_device_that_is_not_there(command, device, message, refusal, runs, here):
    words = command.replace("RUN", str(runs["heads"])).split()
    assert refusal(*words, "--device", device).startswith(message)
    assert not list(here.iterdir())


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
