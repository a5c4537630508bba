"""Training and evaluating a recipe: transformers' Trainer drives, this file connects it. Under ``torchrun`` or
``accelerate launch`` every process calls `train`, and the first one writes.

A run's folder holds ``recipe.yaml``, ``adapter/``, ``metrics.json``, ``history.json``, ``curve.png``, ``gallery.png``
and, until it is finished, ``checkpoints/``; where the right answers of the test split are not published, also the file
for the benchmark's server.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .adapter.fusion import additions
from .backbones import Tunable, load_backbone
from .baselines import apply_method, find_method, load_adapter, save_adapter
from .data import load_dataset
from .data.media import EvalTransform, TrainTransform
from .data.rows import SPLITS
from .data.rows import Dataset as Rows
from .distributed import rank, ranks
from .errors import AuroraError
from .files import write_json
from .gallery import GALLERIES
from .recipe import Recipe, load_recipe
from .report import plot_curve
from .tasks import task_class
from .tasks.base import Task
from .tasks.clips import load_media

STATE = "training_state.safetensors"
ADAPTER = "adapter"
UPLOAD = "upload.json"


class TrainingExamples(Dataset):
    """A task's examples of a split, `Task.examples`. The view of an example depends on seed, epoch and its place alone,
    so that a resumed run and one with more workers see the same pictures; frames of a clip are seen alike."""

    def __init__(self, task: Task, dataset: Rows, *, seed: int, augment: bool, flip: bool) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0
        self.examples = task.examples(dataset)
        size = task.backbone.image_size
        self.training_view = TrainTransform(size, flip=flip) if augment else None
        self.plain_view = EvalTransform(size)
        self.frames = task.settings.frames

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, rest = self.examples[index]
        key = f"{self.seed}/{self.epoch}/{index}"

        def view(image: Image.Image) -> Tensor:
            return self.training_view(image, random.Random(key)) if self.training_view else self.plain_view(image)

        return {"pixels": load_media(self.dataset, row, view, self.frames, random.Random(f"{key}/frames")), **rest}


class TaskTrainer(Trainer):
    """Trainer over a task module: its own evaluation, and checkpoints of what trains only, as safetensors."""

    def __init__(self, task: Task, validation: Rows, head_rate: float, **rest: Any) -> None:
        super().__init__(model=task, eval_dataset=validation, data_collator=task.collate, **rest)  # type: ignore[arg-type]
        self.task, self.validation, self.head_rate = task, validation, head_rate
        self._parts: dict[str, float] = {}
        self._counted = 0

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
            self.optimizer = kind(
                [
                    {
                        "params": weights,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                        "lr": self.head_rate or self.args.learning_rate if head else self.args.learning_rate,
                    }
                    for (head, decays), weights in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name in outputs:
            if name != "loss":
                self._parts[name] = self._parts.get(name, 0.0) + outputs[name].item()
        self._counted += 1
        loss = outputs["loss"]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._counted:
            logs |= {name: round(value / self._counted, 4) for name, value in self._parts.items()}
            self._parts, self._counted = {}, 0
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        with self.compute_loss_context_manager():  # in the precision of training: it only picks a checkpoint
            metrics = self.task.evaluate(self.validation)[0]
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.task.training_state().items()}, folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.task.load_training_state(load_file(Path(resume_from_checkpoint) / STATE))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class _Bar(ProgressCallback):
    """The Trainer's progress bar with the newest loss and validation metric beside it, in place of printed dicts."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.shown = {"loss": "loss", f"eval_{metric}": f"validation {metric.replace('_', ' ')}"}

    def on_log(self, args, state, control, logs=None, **rest) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {self.shown[name]: f"{value:.3g}" for name, value in logs.items() if name in self.shown}
            if shown:
                self.training_bar.set_postfix(shown)


@dataclass
class Run:
    """What a finished run knows of itself."""

    folder: Path
    recipe: Recipe
    backbone: Tunable
    task: Task
    metrics: dict[str, Any]
    history: list[dict[str, float]]


def prepare(recipe: Recipe, *, check: bool = True, progress: bool = False) -> tuple[Rows, Tunable, Task]:
    """All of a run before its first step: data read and checked, then model, method and task. Of a method that has
    nothing to learn, the test split is all that is needed, checked and returned.

    Raises:
        AuroraError: at the first thing that would stop the run.
    """
    method, kind, settings = find_method(recipe.method), task_class(recipe.task.name), recipe.task
    dataset = load_dataset(recipe.data, recipe.root, recipe.files, recipe.broken)
    if method.learns:
        for needed in SPLITS:
            dataset.split(needed)
    else:
        dataset = replace(dataset, items=dataset.split("test").items)
    kind.check(settings, dataset)
    if check:
        dataset.check(progress=progress)
    backbone = _backbone(recipe)
    torch.manual_seed(recipe.train.seed)
    apply_method(backbone, recipe.method, recipe.method_options, recipe.train_heads)
    if method.learns:
        examples = len(kind.examples(dataset.split("train")))  # after the check, which may leave out rows
        batch = recipe.train.batch_size * ranks()
        if examples < batch:
            raise AuroraError(
                f"{recipe.data}: {examples} training {kind.example}s do not fill a batch of {batch}; "
                "lower train.batch_size"
            )
        kind.fit_settings(settings, batch, examples)
        if recipe.train.gradient_checkpointing:
            model = backbone.model  # newer transformers have another name for it
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    return dataset, backbone, kind(backbone, settings)


def claim(folder: Path, resume: bool) -> None:
    """Make sure that ``folder`` may take a run.

    Raises:
        AuroraError: if it holds one and ``resume`` is not asked for, or the other way round, or is a file.
    """
    if rank():
        return  # the first process does it
    if folder.is_file():
        raise AuroraError(f"{folder} is a file; name a folder with --out")
    begun = (folder / "recipe.yaml").is_file()
    if resume and not begun:
        raise AuroraError(f"{folder} holds no run to resume; leave out --resume to start one")
    if not resume and folder.exists() and (begun or any(folder.iterdir())):
        what = "a run" if begun else "files"
        raise AuroraError(f"{folder} already holds {what}; name another --out, or continue it with --resume")
    if resume and (folder / "metrics.json").is_file():
        raise AuroraError(f"{folder} holds a finished run; name another --out to train anew")


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    check: bool = True,
    before: tuple[Any, ...] | None = None,
    start: dict[str, float] | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Run:
    """Train a recipe into ``folder`` and evaluate it on the test split.

    Args:
        resume: continue from the last whole checkpoint in ``folder``, to the same weights as a run without a break.
        check: decode every picture before the first step.
        before: what `untuned` gives for the test split, if known already.
        start: validation metrics of the untuned model, if known already.

    Raises:
        AuroraError: if data, model or folder stand in the way.
    """
    first = rank() == 0  # of several processes it alone writes
    progress = progress and first
    claim(folder, resume)
    prepared = prepare(recipe, check=check and first, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        recipe.save(folder / "recipe.yaml")
    test = prepared[0].split("test")
    if find_method(recipe.method).learns:
        before = before or untuned(recipe, test, progress=progress)
        run = fit(recipe, folder, prepared, resume=resume, progress=progress, start=start, callbacks=callbacks)
        metrics, *found = run.task.evaluate(test, progress=progress)
    else:
        nothing = {"validation_best": None, "weights": weight_counts(prepared[1]), "train_seconds": 0.0, "steps": 0}
        run = Run(folder, recipe, *prepared[1:], nothing, [])
        metrics, *found = before = before or run.task.evaluate(test, progress=progress)
    if not first:
        return run
    if (folder / ADAPTER).exists():
        shutil.rmtree(folder / ADAPTER)  # of a run that was killed while it wrote its results
    save_adapter(run.backbone, folder / ADAPTER)
    run.metrics["test"] = metrics
    for name, others in run.task.other_metrics(*found).items():
        run.metrics[f"test_{name.lower().replace(' ', '_')}"] = others
    run.metrics["zero_shot_test"] = before[0]
    write_json(folder / "history.json", run.history)
    if run.history:
        plot_curve(run.history, folder / "curve.png", run.task.main_metric, run.task.objective)
    if draw := GALLERIES.get(recipe.task.name):
        draw(folder / "gallery.png", test, before[1:], tuple(found))
    if not metrics:
        write_json(folder / f"{recipe.task.name}_{UPLOAD}", run.task.upload(test, *found))
    write_json(folder / "metrics.json", run.metrics)  # last: it marks the run as finished
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return run


def fit(
    recipe: Recipe,
    folder: Path,
    prepared: tuple[Rows, Tunable, Task],
    *,
    resume: bool = False,
    progress: bool = True,
    start: dict[str, float] | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Run:
    """The steps of a run alone, from what `prepare` made: the best weights by the validation split are in the task
    afterwards, the test split is not looked at."""
    dataset, backbone, task = prepared
    settings = recipe.train
    training = TrainingExamples(
        task, dataset.split("train"), seed=settings.seed, augment=settings.augment, flip=settings.flip
    )
    batches = len(training) // (settings.batch_size * settings.gradient_accumulation * ranks())
    steps = settings.max_steps if settings.max_steps > 0 else max(1, round(settings.epochs * batches))
    task.warmup_steps = batches * settings.gradient_accumulation
    main = f"eval_{task.main_metric}"
    arguments = _arguments(recipe, folder / "checkpoints", steps, main, progress)
    arguments.eval_on_start = start is None
    trainer = TaskTrainer(
        task,
        dataset.split("validation"),
        settings.head_learning_rate,
        args=arguments,
        train_dataset=training,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar(task.main_metric))
    started = time.perf_counter()
    checkpoint = _last_checkpoint(folder / "checkpoints") if resume else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    history = list(trainer.state.log_history)
    if start is not None:
        history.insert(0, {"step": 0, **{f"eval_{name}": value for name, value in start.items()}})
    metrics = {
        "validation_best": max((row[main] for row in history if row["step"] and main in row), default=None),
        "weights": weight_counts(backbone),
        "train_seconds": seconds,
        "steps": trainer.state.global_step,
    }
    return Run(folder, recipe, backbone, task, metrics, history)


def _backbone(recipe: Recipe) -> Any:
    return load_backbone(recipe.model, task=recipe.task.name, image_size=recipe.image_size or None)


def untuned(recipe: Recipe, split: Rows, *, progress: bool = False) -> tuple[Any, ...]:
    """What `Task.evaluate` gives for the pretrained model on a split, by the recipe's protocol."""
    backbone = _backbone(recipe)
    apply_method(backbone, "zero-shot")
    return task_class(recipe.task.name)(backbone, recipe.task).evaluate(split, progress=progress)


def load_run(folder: Path) -> tuple[Recipe, Any]:
    """Recipe and tuned backbone of a finished run.

    Raises:
        AuroraError: if ``folder`` holds none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise AuroraError(f"{folder} holds no run: it has no recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    backbone = _backbone(recipe)
    load_adapter(backbone, folder / ADAPTER, recipe.method)
    return recipe, backbone


def is_head(backbone: Tunable, name: str) -> bool:
    """Whether a weight of this name belongs to a head."""
    return any(head in name.split(".") for head in backbone.heads)


def weight_counts(backbone: Tunable) -> dict[str, int]:
    """Trainable weights by group: ``adapter`` and, of these, ``fusion`` (context and gates), ``heads``, all together,
    and those of the frozen model."""
    heads = sum(
        weight.numel()
        for name, weight in backbone.module.named_parameters()
        if weight.requires_grad and is_head(backbone, name)
    )
    trainable = sum(weight.numel() for weight in backbone.parameters() if weight.requires_grad)
    copies = sum(  # peft keeps the untrained heads beside the trained ones
        weight.numel() for name, weight in backbone.module.named_parameters() if ".modules_to_save." in name
    )
    every = sum(weight.numel() for weight in backbone.parameters()) - copies
    adapter = trainable - heads
    fusion = sum(
        weight.numel()
        for _, _, addition in additions(backbone.module)
        for weight in addition.parameters()
        if weight.requires_grad
    )
    whole = every - (adapter if backbone.adapter is not None else 0)
    return {"adapter": adapter, "fusion": fusion, "heads": heads, "trainable": trainable, "model": whole}


def _arguments(recipe: Recipe, folder: Path, steps: int, metric: str, progress: bool) -> TrainingArguments:
    settings = recipe.train
    every = max(1, steps // settings.evaluations)
    on_gpu = torch.cuda.is_available()
    precision = settings.precision
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_steps=steps,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="cosine",
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not on_gpu,
        eval_strategy="steps",
        eval_on_start=True,  # the untuned model, for the curve; `fit` may know it
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        logging_steps=max(1, steps // 40),
        logging_first_step=True,
        dataloader_num_workers=settings.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=not progress,
    )


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its trainer state comes last."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return checkpoint
    return None
