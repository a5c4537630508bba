"""What happens around the steps of a training, as callbacks of transformers' Trainer."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from . import distributed
from .stopping import Stopped


class Spent(Exception):
    """A resumed training has nothing left to do: the evaluation that it owed says that it ends early."""


class AfterStep(TrainerCallback):
    """What happens between two steps: the evaluation that a resumed run owes, checkpoints by the clock, signals.

    Args:
        trainer: the `trainer.TaskTrainer` that calls it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stopped: int | None = None
        self.begins = True  # no step was taken in this process

    def on_train_begin(self, args, state, control, **rest) -> None:
        trainer = self.trainer
        trainer.signals.waits = True
        trainer._started = trainer._saved = time.monotonic()
        if state.global_step == 0 and trainer.start_metrics is not None:
            trainer.save()
            trainer.note({f"eval_{name}": value for name, value in trainer.start_metrics.items()})
        args.eval_on_start = trainer.evaluation_is_due

    def on_step_begin(self, args, state, control, **rest) -> None:
        self.begins = False

    def on_step_end(self, args, state, control, **rest) -> None:
        trainer = self.trainer
        minutes = (time.monotonic() - trainer._saved) / 60
        signum, late = distributed.largest(trainer.signals.received or 0, minutes >= trainer.settings.save_minutes)
        if signum:
            self.stopped = int(signum)
            control.should_training_stop, control.should_evaluate = True, False
        if signum or late:
            control.should_save = True

    def on_evaluate(self, args, state, control, **rest) -> None:
        if self.trainer.is_spent:
            control.should_training_stop = True
            if self.begins:
                raise Spent

    def on_train_end(self, args, state, control, **rest) -> None:
        self.trainer.signals.waits = False
        if self.stopped is not None:
            raise Stopped(self.stopped, state.global_step)


class Bar(ProgressCallback):
    """The Trainer's progress bar with the newest loss and validation metric beside it, in place of printed dicts."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.shown = {"loss": "loss", f"eval_{metric}": f"validation {metric.replace('_', ' ')}"}

    def on_log(self, args, state, control, logs=None, **rest) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {self.shown[name]: f"{value:.3g}" for name, value in logs.items() if name in self.shown}
            if shown:
                self.training_bar.set_postfix(shown)
