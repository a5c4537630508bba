"""Settings of the tasks, apart from their code so that a recipe is read without PyTorch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import AuroraError


@dataclass
class TaskSettings:
    """What every task has."""

    name: str = ""
    frames: int = 0  # of a clip in training; pictures need none
    test_frames: int = 0  # of a clip in evaluation; 0: as many as in training

    def __post_init__(self) -> None:
        self._within("frames", 0, 1024)
        self._within("test_frames", 0, 1024)

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise AuroraError(f"task.{name} is {value}; it must lie between {low} and {high}")

    @property
    def evaluation_frames(self) -> int:
        return self.test_frames or self.frames


@dataclass
class RetrievalSettings(TaskSettings):
    """Numbers of the objective; defaults are BLIP's but for the queue, which fits the data (`fit_queue`)."""

    name: str = "retrieval"
    queue_size: int = 57_600
    momentum: float = 0.995
    alpha: float = 0.4  # weight of the momentum encoder's soft targets, reached after the first epoch
    itm_weight: float = 1.0
    negative_all_rank: bool = False  # whether ITM's hard negatives come from the batches of all ranks
    max_tokens: int = 35
    k_test: int = 128
    beta: float = 0.0
    frame_attention: bool = True  # texts weigh the frames of a clip by their similarity

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (
            ("queue_size", 0, 10**7),
            ("momentum", 0, 1),
            ("alpha", 0, 1),
            ("itm_weight", 0, 1e3),
            ("max_tokens", 2, 512),
            ("k_test", 0, 10**6),
        ):
            self._within(name, low, high)


@dataclass
class VQASettings(TaskSettings):
    """Numbers of the objective and of inference; defaults are those of BLIP's VQA fine-tuning, whose inference by
    ``generate`` has 3 beams where Aurora's released code has 1."""

    name: str = "vqa"
    inference: str = "rank"  # rank: out of the data's candidates | generate: written word by word
    k_test: int = 128  # candidates that rank rescores
    num_beams: int = 1  # of generate
    label_smoothing: float = 0.1  # in the loss, and in the scores of rank
    max_question_tokens: int = 35
    max_answer_tokens: int = 10  # that generate writes, [DEC] included

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference not in ("rank", "generate"):
            raise AuroraError(f"task.inference is {self.inference!r}; choose rank or generate")
        for name, low, high in (
            ("k_test", 1, 10**6),
            ("num_beams", 1, 100),
            ("label_smoothing", 0, 1),
            ("max_question_tokens", 2, 512),
            ("max_answer_tokens", 2, 512),
        ):
            self._within(name, low, high)


# name, which is also that of the task's file -> its settings, and its class there
TASKS: dict[str, tuple[type[TaskSettings], str]] = {
    "retrieval": (RetrievalSettings, "Retrieval"),
    "vqa": (VQASettings, "VQA"),
}


def find_task(name: str) -> tuple[type[TaskSettings], str]:
    """The entry of ``name`` in `TASKS`.

    Raises:
        AuroraError: if there is none.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(str(name), TASKS, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(TASKS)}"
        raise AuroraError(f"no task {name!r}; {hint}")
    return TASKS[name]
