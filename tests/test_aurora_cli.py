"""The `aurora` command's first steps: what it answers without PyTorch, and Ctrl-C while it imports."""

import json
import signal
import subprocess
import sys
import threading

import pytest

import aurora_petl
from aurora_petl import interrupts
from aurora_petl.interrupts import at_once

HEAVY = ("torch", "transformers", "peft")
# words, the exit status, and what is said to stdout or stderr
LIGHT = [
    ("", 0, "usage: aurora"),
    ("--help", 0, "usage: aurora"),
    *((f"{name} --help", 0, f"usage: aurora {name}") for name in ("demo", "train", "evaluate", "params", "convert")),
    *((f"{name} --help", 0, f"usage: aurora {name}") for name in ("index", "search", "serve", "recipes")),
    *((f"{name} --help", 0, f"usage: aurora {name}") for name in ("push", "export")),
    ("--version", 0, f"aurora-petl {aurora_petl.__version__}"),
    ("recipes", 0, "emoji"),
    ("trian", 2, "did you mean train?"),
    ("train emoji --lr 1e-3", 2, "did you mean train.learning_rate=1e-3?"),
    ("train emojy", 1, "did you mean emoji?"),
    ("train", 1, "nothing to train on"),
    ("train emoji train.lernrate=1", 1, "recipe emoji: there is no field train.lernrate; did you mean"),
    ("train emoji method=lorra", 1, "no method 'lorra'; did you mean lora?"),
    ("train emoji task.name=vga", 1, "no task 'vga'; did you mean vqa?"),
    ("train --data X method_options.rr=3", 1, "method aurora has no field method_options.rr; did you mean"),
    ("train --data X method_options.r=9000", 1, "method_options.r is 9000; it must lie between 1 and 8192"),
    ("train --data X train.warmup=7 --dry-run", 1, "train.warmup is 7; it must lie between 0 and 1"),
    ("train --data X train.weight_decay=-1 --dry-run", 1, "train.weight_decay is -1; it must lie between 0 and 100"),
    ("train --data X train.workers=-2 --dry-run", 1, "train.workers is -2; it must lie between 0 and 256"),
    ("params blip-mini --core x", 1, "method_options.core is 'x'; choose diagonal or full"),
    ("evaluate run --rescore 3", 1, "--rescore repeats scores in float32"),
    ("search", 1, "say what to look for"),
]
RUN_ALL = f"""
import contextlib, io, json, sys
import aurora_cli
answers = []
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["aurora", *words.split()], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = aurora_cli.main()
        except SystemExit as stop:
            status = stop.code
    answers.append((status, out.getvalue(), [name for name in {HEAVY} if name in sys.modules]))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the command answers to all the `LIGHT` words, one after the other in one process."""
    words = json.dumps([words for words, _, _ in LIGHT])
    command = [sys.executable, "-c", RUN_ALL, words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("here"))
    assert not done.returncode, done.stderr
    return dict(zip([words for words, _, _ in LIGHT], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("words", "status", "said"), LIGHT)
def test_quick_answers_come_without_pytorch(words, status, said, answers):
    answered, text, heavy = answers[words]
    assert (answered, heavy) == (status, []) and said in text


def test_run_as_a_module_it_imports_as_little():
    command = [sys.executable, "-X", "importtime", "-m", "aurora_petl.cli", "recipes"]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "emoji" in done.stdout and "pydantic" in imported and not imported & set(HEAVY)


def test_public_names_are_there():
    assert set(aurora_petl.__all__) <= set(dir(aurora_petl))
    assert set(aurora_petl._PLACES) == set(aurora_petl.__all__)
    for name in aurora_petl.__all__:
        assert getattr(aurora_petl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'AuroraConfg'"):
        aurora_petl.AuroraConfg  # noqa: B018


def _heed_ctrl_c() -> None:
    """Undo what a shell does to processes in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("module", ["aurora_petl.cli", "yaml", "torch", "aurora_petl.commands"])
def test_ctrl_c_during_the_imports_is_one_line(module, tmp_path):
    script = "import sys, time\n"
    script += "class Slow:\n"
    script += "    def find_spec(name, *rest):\n"
    script += f"        if name == {module!r}: print('importing', flush=True); time.sleep(60)\n"
    script += "sys.meta_path.insert(0, Slow)\n"
    script += "sys.argv = ['aurora', 'train', '--data', 'photos']\n"
    script += "import aurora_cli\nsys.exit(aurora_cli.main())\n"
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=_heed_ctrl_c
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "aurora: stopped\n")


def test_another_handler_is_left_alone():
    def own(*signal):
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        with at_once():
            assert signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with at_once(), at_once():
            assert signal.getsignal(signal.SIGINT) is interrupts._end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_a_thread_nothing_is_changed():
    seen = []

    def enter():
        with at_once():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before] and signal.getsignal(signal.SIGINT) is before
