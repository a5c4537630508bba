"""How the steps of a run go: transformers' Trainer drives a task, with checkpoints, losses and signals of our own.

The Trainer sees one long epoch of all batches of the run (`examples.Order`), so that nothing depends on how it counts
epochs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from . import checkpoints, distributed, selection
from .baselines import is_head
from .checkpoints import Checkpoint
from .data.rows import Dataset as Rows
from .errors import Diverged, SharedError
from .evaluation.outcome import Outcome
from .examples import Order, TrainingExamples
from .files import write_text
from .recipe import Recipe, TrainSettings
from .selection import Kept
from .stopping import Signals, Stopped
from .tasks.base import Task
from .train_arguments import training_arguments
from .trainer_callbacks import AfterStep, Bar, Spent

LOG = "losses.jsonl"


class TaskTrainer(Trainer):
    """Trainer over a task module.

    It evaluates the task its own way, keeps checkpoints of what trains only (`checkpoints.py`), and writes the losses
    of every step to ``losses.jsonl``. A checkpoint is written before each evaluation, so that an evaluation may be
    interrupted at any time: a resumed run repeats it.

    Args:
        folder: of the run.
        signals: are looked at after every step.
    """

    def __init__(
        self, task: Task, validation: Rows, folder: Path, settings: TrainSettings, signals: Signals, **rest: Any
    ) -> None:
        super().__init__(model=task, eval_dataset=validation, data_collator=task.collate, **rest)  # type: ignore[arg-type]
        self.task, self.validation, self.folder, self.settings = task, validation, folder, settings
        self.signals = signals
        self.start_metrics: dict[str, float] | None = None  # of the untuned model, if known already
        self.best: dict[str, float] | None = None  # step and metric of the weights that are kept beside the newest
        self.seconds_before = 0.0  # of training, before this process
        self._outcomes: dict[int, Outcome] = {}  # of this process's first and newest evaluation, which `settle` needs
        self._parts: list[dict[str, Tensor]] = []  # of every micro-batch since the last written step
        self._window: list[dict[str, float]] = []  # written steps since the last row of the history
        self._started = self._saved = time.monotonic()
        self._checkpoint: Checkpoint | None = None
        self.add_callback(AfterStep(self))

    def train(self, *args: Any, **options: Any) -> Any:
        try:
            return super().train(*args, **options)
        except Spent:
            self.signals.waits = False
            return None

    # What is trained on

    def get_train_dataloader(self) -> DataLoader:
        examples, args = cast(TrainingExamples, self.train_dataset), self.args
        batch = args.per_device_train_batch_size
        joint = batch * args.world_size
        order = Order(len(examples), joint, args.max_steps * args.gradient_accumulation_steps * joint, args.seed)
        loader: DataLoader = DataLoader(
            examples,
            batch_sampler=BatchSampler(order, batch, drop_last=True),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(args.seed),  # else every iterator draws from the global one
        )
        return cast(DataLoader, self.accelerator.prepare(loader))

    def create_optimizer(self, model=None):
        """The Trainer's AdamW, in groups by weight decay and by whether a weight is a head's, which may have a rate of
        its own: heads start trained, an adapter starts at zero."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.task))
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups: dict[tuple[bool, bool], list[Tensor]] = {}
            for name, weight in self.task.named_parameters():
                if weight.requires_grad:
                    groups.setdefault((is_head(self.task.backbone, name), name in decayed), []).append(weight)
            head_rate = self.settings.head_learning_rate or self.args.learning_rate
            self.optimizer = kind(
                [
                    {
                        "params": weights,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                        "lr": head_rate if head else self.args.learning_rate,
                    }
                    for (head, decays), weights in groups.items()
                ],
                **options,
            )
        return self.optimizer

    # Losses

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        self._parts.append({name: value.detach() for name, value in outputs.items()})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _write_losses(self) -> None:
        """Write a line to ``losses.jsonl`` for every step since the last written one, the mean over micro-batches and
        ranks. Every rank must call this at the same step; values are read from the device here only."""
        if not self._parts:
            return
        names = list(self._parts[0])
        values = torch.stack([torch.stack([part[name].float() for name in names]) for part in self._parts])
        means = values.unflatten(0, (-1, self.args.gradient_accumulation_steps)).mean(1)
        rows = (distributed.total(means) / self.args.world_size).tolist()
        first = self.state.global_step - len(rows) + 1
        lines = [{"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(rows, first)]
        self._parts = []
        self._window += lines
        if self.is_world_process_zero():
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        if wrong := next((line for line in lines if not math.isfinite(line["loss"])), None):
            raise self._diverged(f"the loss of step {wrong['step']} is {wrong['loss']}")

    def _diverged(self, what: str) -> Diverged:
        rates = f"train.learning_rate (it is {self.args.learning_rate:g}"
        if self.settings.head_learning_rate:
            rates += f", train.head_learning_rate {self.settings.head_learning_rate:g}"
        return Diverged(f"the training diverged: {what}; lower {rates}) and start anew")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._write_losses()
            for name in self._window[0] if self._window else ():
                if name != "step":
                    logs[name] = round(sum(row[name] for row in self._window) / len(self._window), 4)
            self._window = []
        super().log(logs, start_time)
        examples = cast(TrainingExamples, self.train_dataset)
        batches = len(examples) // (self.args.per_device_train_batch_size * self.args.world_size)
        epochs = self.state.global_step * self.args.gradient_accumulation_steps / batches
        self.state.log_history[-1]["epoch"] = logs["epoch"] = round(epochs, 4)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        self.save()
        if not torch.stack([weight.isfinite().all() for _, weight in self.task.trained()]).all():
            raise self._diverged(f"weights are not finite at step {self.state.global_step}")
        with self.interruptible(), self.compute_loss_context_manager():  # in the precision of training
            outcome = self.task.evaluate(self.validation)
        if self.settings.keep == "strength":
            self._outcomes = {step: self._outcomes[step] for step in (0,) if step in self._outcomes}
            self._outcomes[self.state.global_step] = outcome
        named = {f"{metric_key_prefix}_{name}": value for name, value in (outcome.metrics | outcome.choice).items()}
        self.note(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def note(self, named: dict[str, float]) -> None:
        """Log the validation metrics of this step, and note whether its weights are the best so far."""
        self.log(dict(named))
        metric = named[f"eval_{self.task.main_metric}"]
        step = self.state.global_step
        if self.settings.keep == "last":
            self.best = {"step": step, "metric": metric}
        elif self.settings.keep == "best":
            if step and (self.best is None or metric > self.best["metric"]):
                self.best = {"step": step, "metric": metric}
        elif step == 0:  # the weights that the last ones will be drawn back to
            self.best = {"step": 0, "metric": metric}
        self._prune()

    @property
    def is_spent(self) -> bool:
        """Whether the last ``train.patience`` evaluations brought nothing better than an earlier one."""
        name = f"eval_{self.task.main_metric}"
        metrics = [row[name] for row in self.state.log_history if name in row]
        patience = self.settings.patience
        return bool(patience) and len(metrics) > patience and max(metrics[-patience:]) <= max(metrics[:-patience])

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it, a signal ends the process at once."""
        waited, self.signals.waits = self.signals.waits, False
        if self.signals.received is not None:
            raise Stopped(self.signals.received, self.state.global_step)
        try:
            yield
        except Stopped as stopped:
            raise Stopped(stopped.signum, self.state.global_step) from None
        finally:
            self.signals.waits = waited

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the run stopped before the evaluation of the step that it resumes behind."""
        step, last = self.state.global_step, self.args.max_steps
        evaluated = any(
            row["step"] == step and f"eval_{self.task.main_metric}" in row for row in self.state.log_history
        )
        return not evaluated and (step in (0, last) or step % int(self.args.eval_steps or 1) == 0)

    # Checkpoints

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those of earlier processes included."""
        return self.seconds_before + time.monotonic() - self._started

    def save(self) -> None:
        """Write a checkpoint of this step; every rank must call this."""
        self._write_losses()
        generators = distributed.objects(checkpoints.random_state(self.args.device))
        if self.is_world_process_zero():
            scaler = getattr(self.accelerator, "scaler", None)
            checkpoints.write(
                self.folder / "checkpoints",
                self.state.global_step,
                self.task.training_state(),
                cast(Any, self.optimizer).state_dict(),
                generators,
                json.dumps(self._trainer_state(), indent=1),
                {
                    "schedule": cast(Any, self.lr_scheduler).state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "best": self.best,
                    "window": self._window,
                    "seconds": self.seconds,
                },
            )
        self._prune()
        self._saved = time.monotonic()

    def _prune(self) -> None:
        if self.is_world_process_zero():
            needed = set() if self.best is None else {int(self.best["step"])}
            checkpoints.prune(self.folder / "checkpoints", needed | self.steps_to_keep)

    @property
    def steps_to_keep(self) -> set[int]:
        """The steps whose checkpoints stay when the run is finished."""
        return selection.steps_to_keep(self.settings.checkpoints, self.state.log_history, self.task.main_metric)

    def _trainer_state(self) -> dict[str, Any]:
        return dataclasses.asdict(self.state) | {"stateful_callbacks": {}}

    def _save_checkpoint(self, *_: Any, **__: Any) -> None:
        self.save()

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Take up the best step, the losses and the time of a checkpoint, or begin anew without one; `train` takes up
        the rest of it."""
        if checkpoint is not None:
            self._checkpoint = checkpoint
            self.best = checkpoint.facts["best"]
            self._window = checkpoint.facts["window"]
            self.seconds_before = checkpoint.facts["seconds"]
        log = self.folder / LOG
        if self.is_world_process_zero() and log.is_file():
            lines = log.read_text(encoding="utf-8").splitlines()[: checkpoint.step if checkpoint else 0]
            write_text(log, "".join(f"{line}\n" for line in lines))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        state = checkpoints.read(Path(resume_from_checkpoint)).tensors(checkpoints.STATE)
        self.task.load_training_state(state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._checkpoint is not None:
            cast(Any, self.optimizer).load_state_dict(checkpoints.optimizer_state(self._checkpoint))
            cast(Any, self.lr_scheduler).load_state_dict(self._checkpoint.facts["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if self._checkpoint is not None and scaler is not None and self._checkpoint.facts["scaler"] is not None:
            scaler.load_state_dict(self._checkpoint.facts["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._checkpoint is not None:
            generator = self._checkpoint.tensors(f"random-{distributed.rank()}.safetensors")
            checkpoints.set_random_state(generator, self.args.device)

    def settle(self) -> Kept:
        """Put the weights that the validation split likes best into the task, as ``train.keep`` has it."""
        if self.settings.keep == "strength":
            return self._settle_strength()
        best: dict[str, Any] = self.best or {"step": self.state.global_step, "metric": None}
        self._load_best()
        choice = selection.choice_at(self.task.settings, self.state.log_history, int(best["step"]))
        return Kept(int(best["step"]), best["metric"], choice)

    def _settle_strength(self) -> Kept:
        assert self.best is not None  # every run of this kind evaluates step 0
        start = checkpoints.read(checkpoints.path_of(self.folder / "checkpoints", 0)).tensors(checkpoints.STATE)
        ends = {name: weight.detach().clone() for name, weight in self.task.trained()}
        starts = {name: start[f"model.{name}"].to(weight) for name, weight in ends.items()}
        ran = {0.0: 0, 1.0: self.state.global_step}  # what training evaluated itself
        outcomes = {strength: self._outcomes[step] for strength, step in ran.items() if step in self._outcomes}
        for strength in selection.STRENGTHS:
            if strength not in outcomes:
                selection.blend(self.task.trained(), starts, ends, strength)
                with self.compute_loss_context_manager():
                    outcomes[strength] = self.task.evaluate(self.validation)
        strength = selection.choose_strength({tried: outcomes[tried].errors for tried in selection.STRENGTHS})
        selection.blend(self.task.trained(), starts, ends, strength)
        metrics = {tried: outcomes[tried].metrics[self.task.main_metric] for tried in selection.STRENGTHS}
        step = self.state.global_step if strength else 0
        return Kept(step, metrics[strength], outcomes[strength].choice, strength, metrics)

    def _load_best(self) -> None:
        """Put the best weights by validation into the task."""
        if self.best is not None and self.best["step"] != self.state.global_step:
            self._load_from_checkpoint(str(checkpoints.path_of(self.folder / "checkpoints", int(self.best["step"]))))


def make_trainer(
    task: Task,
    training: TrainingExamples,
    validation: Rows,
    recipe: Recipe,
    folder: Path,
    signals: Signals,
    *,
    steps: int,
    progress: bool,
    callbacks: list[TrainerCallback] | None = None,
) -> TaskTrainer:
    """A trainer of ``steps`` steps into the run's ``folder``.

    Raises:
        AuroraError: under FSDP or DeepSpeed.
    """
    trainer = TaskTrainer(
        task,
        validation,
        folder,
        recipe.train,
        signals,
        args=training_arguments(recipe.train, folder / "checkpoints", steps, progress),
        train_dataset=training,
        callbacks=callbacks,
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise SharedError(
            "FSDP and DeepSpeed shard the frozen model, which aurora train does not do; start it by torchrun, or by "
            "accelerate launch without them"
        )
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar(task.main_metric))
    return trainer
