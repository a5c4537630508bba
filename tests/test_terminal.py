"""What the `aurora` command does at the limits of its machine and its terminal: one line, or nothing at all."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from aurora_petl import terminal, training
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def shell(*words: object, **rest) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aurora_petl.cli", *map(str, words)]
    return subprocess.run(command, **({"capture_output": True, "text": True} | rest))


FULL = "[Errno 28] No space left on device"
CLOSE = "lower train.batch_size or image_size, or close other programs"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (AuroraError("x"), 1, "aurora: error: x\n"),
        (OSError(28, "No space left on device"), 1, "aurora: error: [Errno 28] No space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "aurora: error: what reads the output has gone away\n"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, f"aurora: error: {FULL}\n"),
        (
            RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file: file write failed"),
            1,
            f"aurora: error: {FULL}\n",
        ),
        (MemoryError(), 1, f"aurora: error: out of memory; {CLOSE}\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            1,
            f"aurora: error: out of memory (CUDA out of memory); {CLOSE}\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            f"aurora: error: out of memory (DefaultCPUAllocator: can't allocate memory); {CLOSE}\n",
        ),
        (RecursionError("maximum"), 1, "aurora: error: something in the input is nested too deeply\n"),
        (
            UnicodeEncodeError("ascii", "é", 0, 1, "no"),
            1,
            "aurora: error: text that cannot be written as ascii: "
            "'ascii' codec can't encode character '\\xe9' in position 0: no\n",
        ),
        (
            AuroraError(
                "Caught AuroraError in worker 0.\nOriginal Traceback (most recent):\n  x\n"
                "aurora_petl.errors.AuroraError: 1.jpg: broken"
            ),
            1,
            "aurora: error: 1.jpg: broken\n",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            1,
            "aurora: error: DataLoader worker (pid 7) is killed by signal: Killed.; "
            "memory was short, most likely: lower train.workers or --workers\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "aurora: stopped; train goes on with --resume, index when called again\n",
        ),
    ],
)
def test_what_stops_a_run_is_one_line(error, status, line, monkeypatch, folder, capsys):
    def fail(*args, **rest):
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert main(["train", "--data", str(folder)]) == status
    assert capsys.readouterr() == ("", line)


def test_a_bug_keeps_its_traceback(monkeypatch, folder):
    def fail(*args, **rest):
        raise ZeroDivisionError

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--data", str(folder)])


def test_bars_are_for_terminals(monkeypatch):
    for terminal_there, quiet, shown in ((True, False, True), (True, True, False), (False, False, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda there=terminal_there: there, raising=False)
        assert terminal.progress(quiet) is shown


def test_a_run_leaves_nothing_in_a_log_and_works_from_any_folder(tmp_path, here, folder):
    data = os.path.relpath(folder, here)
    fields = ["train.max_steps=1", "train.evaluations=1", "train.batch_size=4", "train.workers=1", "task.queue_size=0"]
    done = shell("train", "--data", data, "--out", "run", *fields)
    assert (done.returncode, done.stderr) == (0, "") and "\r" not in done.stdout
    assert load_recipe(here / "run/recipe.yaml").data == str(here / data)
    (tmp_path / "else").mkdir()
    os.chdir(tmp_path / "else")
    done = shell("evaluate", here / "run")
    assert (done.returncode, done.stderr) == (0, "") and "\r" not in done.stdout


def test_a_path_that_is_not_utf8_works(tmp_path, folder):
    odd = os.fsencode(tmp_path) + b"/pictures\xff"
    shutil.copytree(os.fsencode(folder), odd)
    command = [sys.executable, "-m", "aurora_petl.cli", "train", "--dry-run", "train.batch_size=8", "--data", odd]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and b"All checks passed" in done.stdout


def test_a_terminal_of_few_characters():
    done = subprocess.run(
        [sys.executable, "-m", "aurora_petl.cli", "train", "größe"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 1 and done.stderr.startswith(b"aurora: error: no recipe 'gr\\xf6\\xdfe'")


@pytest.mark.parametrize("output", ["full", "closed"])
def test_an_output_that_takes_nothing_is_one_line(output):
    if output == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "aurora_petl.cli", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True
            )
        line = f"aurora: error: {FULL}\n"
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "aurora_petl.cli", "recipes"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        line = "aurora: error: what reads the output has gone away\n"
    assert (done.returncode, done.stderr) == (1, line)
