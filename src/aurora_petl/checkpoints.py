"""Checkpoints of a training run: folders that appear whole, are verified when they are read, and of which the newest
whole one is taken.

    checkpoints/checkpoint-120/
      training_state.safetensors    trained weights, averages, queue, and the model's buffers
      optimizer.safetensors         the optimizer's moments, by number of the weight
      random-0.safetensors          states of the random generators, a file a process
      trainer_state.json            what transformers' Trainer knows: step, history
      checkpoint.json               settings of the optimizer and the schedule, and the SHA-256 of every other file

No file is a pickle. `checkpoint.json` is written last and the folder is renamed into its place, so a folder that a kill
cut short is never taken for a checkpoint; what was damaged later fails its digest and an older one is taken.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import AuroraError, first_line, short
from .files import finite, read_json, whole_folder, write_json, write_tensors

FORMAT = 1
INDEX = "checkpoint.json"
STATE = "training_state.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer_state.json"
KEPT = 2  # newest checkpoints, beside the best one
_NAME = re.compile(r"checkpoint-(0|[1-9]\d{0,15})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        facts: what `checkpoint.json` says beside the digests.
    """

    path: Path
    step: int
    facts: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU."""
        return load_file(self.path / name)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step}"


def write(
    folder: Path,
    step: int,
    state: dict[str, Tensor],
    optimizer: dict[str, Any],
    generators: list[dict[str, Tensor]],
    trainer_state: str,
    facts: dict[str, Any],
) -> None:
    """Write the checkpoint of a step; one that exists already is left as it is.

    Args:
        state: of `Task.training_state`.
        optimizer: an optimizer's ``state_dict()``.
        generators: of `random_state`, one for each process.
        trainer_state: the Trainer's state as JSON.
        facts: what else JSON can hold.

    Raises:
        OSError: if there is no room or no right to write; nothing half-written remains.
    """
    if path_of(folder, step).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors, values = _split(optimizer["state"])
    with whole_folder(path_of(folder, step)) as partial:
        write_tensors(partial / STATE, state)
        write_tensors(partial / OPTIMIZER, tensors)
        for number, generator in enumerate(generators):
            write_tensors(partial / f"random-{number}.safetensors", generator)
        (partial / TRAINER).write_text(trainer_state, encoding="utf-8")
        digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        head = {"format": FORMAT, "step": step, "ranks": len(generators), "files": digests}
        head |= {"optimizer": {"groups": optimizer["param_groups"], "values": values}}
        head = finite(head | facts)
        write_json(partial / INDEX, head | {"digest": _digest_of(head)})


def prune(folder: Path, keep: Collection[int] = (), newest: int = KEPT) -> None:
    """Remove all checkpoints but so many of the newest and those of the steps ``keep``."""
    every = steps(folder)
    for step in every[: max(0, len(every) - newest)]:
        if step not in keep:
            shutil.rmtree(path_of(folder, step), ignore_errors=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with newer ones.

    These are set aside under the name ``damaged-N``, so that their steps can be written again. They are not removed: a
    disk that fails for a moment makes a good checkpoint look damaged.
    """
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return read(path_of(folder, step)), problems
        except AuroraError as error:
            problems.append(str(error))
            _set_aside(path_of(folder, step))
    return None, problems


def _set_aside(path: Path) -> None:
    step = path.name.partition("-")[2]
    places = (path.with_name(f"damaged-{step}" if number == 1 else f"damaged-{step}-{number}") for number in count(1))
    path.rename(next(place for place in places if not place.exists()))


def read(path: Path) -> Checkpoint:
    """Verify the checkpoint in ``path``.

    Raises:
        AuroraError: if a file is missing or other than it was written.
    """
    facts = read_json(path / INDEX)
    if isinstance(facts, dict) and facts.pop("digest", "") != _digest_of(facts):
        raise AuroraError(f"{path / INDEX} is not as it was written")
    match = _NAME.fullmatch(path.name)
    wanted = {"format": int, "step": int, "ranks": int, "files": dict, "optimizer": dict}
    if not isinstance(facts, dict) or any(not isinstance(facts.get(key), kind) for key, kind in wanted.items()):
        raise AuroraError(f"{path / INDEX} is not what a checkpoint holds")
    if facts["format"] != FORMAT or match is None or int(match[1]) != facts["step"]:
        raise AuroraError(f"{path} is of format {short(facts['format'])} or another step than its name says")
    names = {STATE, OPTIMIZER, TRAINER, *(f"random-{number}.safetensors" for number in range(facts["ranks"]))}
    if set(facts["files"]) != names:
        raise AuroraError(f"{path / INDEX} does not list the files of a checkpoint")
    for name, digest in facts["files"].items():
        try:
            same = _digest(path / name) == digest
        except OSError as error:
            raise AuroraError(f"{path / name} cannot be read: {error.strerror or first_line(error)}") from error
        if not same:
            raise AuroraError(f"{path / name} is not as it was written")
    return Checkpoint(path, facts["step"], facts)


def optimizer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The optimizer's ``state_dict()`` as it was."""
    states: dict[int, dict[str, Any]] = {}
    for name, value in checkpoint.tensors(OPTIMIZER).items():
        number, _, key = name.partition("/")
        states.setdefault(int(number), {})[key] = value
    for number, values in checkpoint.facts["optimizer"]["values"].items():
        states.setdefault(int(number), {}).update(values)
    return {"state": states, "param_groups": checkpoint.facts["optimizer"]["groups"]}


def _split(states: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """An optimizer's states as tensors by name, and as values that JSON holds."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, state in states.items():
        tensors |= {f"{number}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        if rest := {key: value for key, value in state.items() if not isinstance(value, Tensor)}:
            values[str(number)] = rest
    return tensors, values


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of Python's, NumPy's and PyTorch's random generators, those of ``device`` among them."""
    version, numbers, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": torch.tensor(numbers),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_place": torch.tensor([place, has_gauss]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "cpu": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put `random_state` back, as far as this process has such a device."""
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    place, has_gauss = states["numpy_place"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, place, has_gauss, float(states["numpy_gauss"])))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are in ``folder``, whole or not, the first one first."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def _digest_of(facts: dict[str, Any]) -> str:
    """A digest of what a checkpoint's index holds, before it is written or after it is read."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    if not path.is_file():  # a pipe would never end
        raise AuroraError(f"{path} is no file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
