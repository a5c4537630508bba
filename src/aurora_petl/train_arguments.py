"""The Trainer's arguments, from a recipe's settings and the machine: device, precision, one GPU a process."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .data import loading
from .devices import bfloat16_is_fast, choose
from .errors import AuroraError, did_you_mean, short
from .notes import note
from .recipe import TrainSettings


def precision_of(settings: TrainSettings, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where the hardware computes in it."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if bfloat16_is_fast(device) else "fp32"


def check_trackers(settings: TrainSettings) -> None:
    """Make sure that the trackers of ``report_to`` are installed.

    Raises:
        AuroraError: at the first that the Trainer does not know or that is not there.
    """
    for name in settings.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            guess = did_you_mean(name, INTEGRATION_TO_CALLBACK, "choose one of")
            raise AuroraError(f"train.report_to: the Trainer reports to no {short(name)}; {guess}")
        if name not in get_available_reporting_integrations():
            raise AuroraError(f"train.report_to: {name} is not installed; get it with python -m pip install {name}")


def training_arguments(settings: TrainSettings, folder: Path, steps: int, progress: bool) -> TrainingArguments:
    """Arguments of a run of so many ``steps``, whose checkpoints lie in ``folder``."""
    device = choose()
    precision = precision_of(settings, device)
    if "tensorboard" in settings.report_to:  # else it writes to the checkpoints' folder, which goes when a run ends
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.parent / "tensorboard"))
    with loading.using(settings.workers):
        workers = loading.chosen()
    arguments = TrainingArguments(
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
        use_cpu=device.type == "cpu",
        eval_strategy="steps",
        eval_steps=max(1, steps // settings.evaluations),
        save_strategy="no",  # `TaskTrainer` writes checkpoints itself
        logging_steps=max(1, steps // 40),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=device.type == "cuda",
        accelerator_config={"non_blocking": device.type == "cuda"},  # batches move while the GPU works
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to=settings.report_to,
        disable_tqdm=not progress,
    )
    one_gpu(arguments)
    if device.type == "cuda" and device.index and arguments.world_size == 1:
        arguments.__dict__["_setup_devices"] = device  # a cached property, which takes the first GPU
        torch.cuda.set_device(device)
    return arguments


def one_gpu(arguments: TrainingArguments) -> None:
    """Let a process that sees several GPUs train on one of them, and say how all are used. The Trainer would wrap the
    task in DataParallel, which copies the model at every step and knows no adapters."""
    if arguments.n_gpu > 1:
        note(
            f"this machine has {arguments.n_gpu} GPUs and one of them trains; for all of them start "
            f"torchrun --nproc_per_node {arguments.n_gpu} -m aurora_petl.cli train ..."
        )
        arguments._n_gpu = 1
