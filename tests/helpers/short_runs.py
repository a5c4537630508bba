"""Short training runs: their settings, how to break one off, and a port for the processes of one."""

import socket
from pathlib import Path

from transformers import TrainerCallback

SMALL = [
    "train.precision=fp32",
    "train.batch_size=6",
    "train.max_steps=6",
    "train.evaluations=3",
    "task.queue_size=6",
    "method_options.r=4",
]


def settings(folder: Path, *more: str) -> list[str]:
    return [f"data={folder}", "method=aurora", "train.learning_rate=3e-3", *SMALL, *more]


class Break(TrainerCallback):
    """Ends a run right after the evaluation of the first steps."""

    def on_evaluate(self, args, state, control, **rest):
        if state.global_step:
            raise KeyboardInterrupt


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
