"""Runs that are killed at random moments and resumed take the same steps as runs without a break."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.short_runs import free_port

# dropout of components, context with its bank, gates, queue, momentum, accumulation, a loader worker; the evaluations
# do not fall on epochs' ends (8 pairs an epoch), nor the 3 steps between rows of the history on the evaluations
RECIPE = """
data: {data}
method_options: {{r: 4, dropout: 0.1, context: batch, gate: scale_shift}}
task: {{queue_size: 8}}
train:
  {{batch_size: 3, gradient_accumulation: 2, max_steps: 25, evaluations: 5, precision: fp32, workers: 1,
    learning_rate: 1e-3, save_minutes: 0.03}}
"""


def begin(folder: Path, *words: str, ranks: int = 1) -> subprocess.Popen:
    """Start ``aurora train`` in ``folder`` with the run's folder ``run``."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "aurora_petl.cli", "train", *words]
    log = (folder / "log").open("a")
    return subprocess.Popen(
        [*command, "--out", "run", "--quiet"],
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_heed_ctrl_c,
    )


def _heed_ctrl_c() -> None:
    """Undo what a shell does to processes in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def steps_of(folder: Path) -> int:
    """How many steps a run has written so far."""
    log = folder / "run/losses.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def processes_of(launcher: int) -> list[int]:
    """The ranks that torchrun started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def wait_for(process: subprocess.Popen, folder: Path, condition, seconds: float = 400) -> None:
    deadline = time.time() + seconds
    while process.poll() is None and not condition():
        assert time.time() < deadline, (folder / "log").read_text()[-3000:]
        time.sleep(0.02)


def run_whole(folder: Path, pictures: Path, ranks: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(data=pictures))
    assert begin(folder, "recipe.yaml", ranks=ranks).wait(600) == 0, (folder / "log").read_text()[-3000:]
    return folder / "run"


def results(run: Path) -> dict[str, object]:
    """All that must not depend on breaks."""
    metrics = json.loads((run / "metrics.json").read_text())
    history = json.loads((run / "history.json").read_text())
    return {
        "losses": (run / "losses.jsonl").read_text(),
        "history": [row for row in history if "train_runtime" not in row],
        "metrics": {name: value for name, value in metrics.items() if name != "train_seconds"},
        "weights": {
            name: value.numpy().tobytes()
            for name, value in load_file(run / "adapter/adapter_model.safetensors").items()
        },
    }


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Results of runs without a break, by the number of processes."""
    made: dict[int, dict[str, object]] = {}

    def of(ranks: int) -> dict[str, object]:
        if ranks not in made:
            made[ranks] = results(run_whole(tmp_path_factory.mktemp("whole") / "x", folder, ranks))
            assert made[ranks]["losses"].count("\n") == 25  # type: ignore[attr-defined]
        return made[ranks]

    return of


def kill_and_resume(folder: Path, pictures: Path, ranks: int, blows: list[tuple[float, str]]) -> list[int]:
    """Begin a run, strike it at shares of its steps in turn, resume each time; the statuses of the processes."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(data=pictures))
    process, statuses = begin(folder, "recipe.yaml", ranks=ranks), []
    for share, how in blows:
        wait_for(process, folder, lambda share=share: steps_of(folder) >= round(share * 25))
        time.sleep(random.Random(share).random() * 0.3)  # anywhere in a step, a checkpoint, an evaluation
        if process.poll() is not None:
            break  # it was faster
        strike(process, ranks, how)
        statuses.append(process.wait(120))
        if (folder / "run/metrics.json").is_file():
            return statuses  # the blow came when all was written, on the way out
        begun = (folder / "run/recipe.yaml").is_file()  # else the blow came before the run
        process = begin(folder, "--resume" if begun else "recipe.yaml", ranks=ranks)
    assert process.wait(600) == 0, (folder / "log").read_text()[-3000:]
    return statuses


def strike(process: subprocess.Popen, ranks: int, how: str) -> None:
    if how == "kill":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "terminate":
        process.terminate()
    elif how == "interrupt":  # as a terminal does, to all processes of the group
        os.killpg(process.pid, signal.SIGINT)
    elif how == "one rank":
        os.kill(processes_of(process.pid)[-1], signal.SIGKILL)
    elif how == "launcher":
        os.kill(process.pid, signal.SIGKILL)  # the ranks go on without it, and stop by themselves


def check(folder: Path, expected: dict[str, object]) -> None:
    ours = results(folder / "run")
    for name, value in expected.items():
        assert ours[name] == value, f"{name} differ\n{(folder / 'log').read_text()[-2000:]}"


@pytest.mark.parametrize("how", ["terminate", pytest.param("interrupt", marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_that_runs(how, folder, whole, tmp_path):
    statuses = kill_and_resume(tmp_path / "x", folder, 1, [(0.3, how)])
    assert statuses == [{"terminate": 128 + signal.SIGTERM, "interrupt": 130}[how]]
    log = (tmp_path / "x/log").read_text()
    assert "is saved; train goes on with --resume" in log and "Traceback" not in log
    check(tmp_path / "x", whole(1))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "terminate", "interrupt", "one rank", "launcher"])
def test_two_ranks_that_are_struck(how, folder, whole, tmp_path):
    statuses = kill_and_resume(tmp_path / "x", folder, 2, [(0.4, how)])
    assert 0 not in statuses
    check(tmp_path / "x", whole(2))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_random_moments(number, folder, whole, tmp_path):
    draw = random.Random(number)
    ranks = 2 if number >= 18 else 1
    ways = ["kill", "terminate", "interrupt"] + (["one rank", "launcher"] if ranks > 1 else [])
    blows = sorted((draw.random() * 0.95, draw.choice(ways)) for _ in range(draw.randint(1, 3)))
    statuses = kill_and_resume(tmp_path / "x", folder, ranks, blows)
    assert 0 not in statuses
    check(tmp_path / "x", whole(ranks))


def test_checkpoints_hold_no_pickle(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=folder))
    process = begin(tmp_path, "recipe.yaml")
    newest = tmp_path / "run/checkpoints/checkpoint-5"
    wait_for(process, tmp_path, newest.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    names = {path.name for path in newest.iterdir()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"} and "random-0.safetensors" in names
