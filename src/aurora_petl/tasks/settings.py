"""Settings of the tasks, apart from their code so that a recipe is read without PyTorch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import AuroraError, short
from ..fields import check, choice, number


@dataclass
class TaskSettings:
    """What every task has."""

    name: str = ""
    frames: int = number(0, 0, 1024)  # of a clip in training; pictures need none
    test_frames: int = number(0, 0, 1024)  # of a clip in evaluation; 0: as many as in training

    def __post_init__(self) -> None:
        check(self, "task.")

    @property
    def evaluation_frames(self) -> int:
        return self.test_frames or self.frames

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that the model reads or writes; 0 if the task has no texts."""
        return 0


@dataclass
class RetrievalSettings(TaskSettings):
    """Numbers of the objective; defaults are BLIP's but for the queue, which fits the data (`fit_queue`)."""

    name: str = "retrieval"
    queue_size: int = number(57_600, 0, 10**7)
    momentum: float = number(0.995, 0, 1)
    # copy: averages start as the model, the queue empty; checkpoint: as in its checkpoint
    momentum_init: str = choice("copy", "checkpoint")
    # weight of the momentum encoder's soft targets, reached after the first epoch
    alpha: float = number(0.4, 0, 1)
    itm_weight: float = number(1.0, 0, 1000)
    negative_all_rank: bool = False  # whether ITM's hard negatives come from the batches of all ranks
    max_tokens: int = number(35, 2, 512)
    # of the candidates. itm: the k_test best by ITC, by match logit + beta * similarity | itc: by similarity alone |
    # choose: of these, with several betas, what the validation split likes best
    ranking: str = choice("itm", "itc", "choose")
    k_test: int = number(128, 0, 10**6)
    beta: float = number(0.0, -(10**6), 10**6)
    frame_attention: bool = True  # texts weigh the frames of a clip by their similarity

    @property
    def longest_text(self) -> int:
        return self.max_tokens


@dataclass
class VQASettings(TaskSettings):
    """Numbers of the objective and of inference; defaults are those of BLIP's VQA fine-tuning, whose inference by
    ``generate`` has 3 beams where Aurora's released code has 1."""

    name: str = "vqa"
    inference: str = choice("rank", "generate")  # out of the data's candidates, or written word by word
    k_test: int = number(128, 1, 10**6)  # candidates that rank rescores
    num_beams: int = number(1, 1, 100)  # of generate
    label_smoothing: float = number(0.1, 0, 1)  # in the loss, and in the scores of rank
    max_question_tokens: int = number(35, 2, 512)
    max_answer_tokens: int = number(10, 2, 512)  # that generate writes, [DEC] included

    @property
    def longest_text(self) -> int:
        return max(self.max_question_tokens, self.max_answer_tokens)


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
    if not isinstance(name, str) or name not in TASKS:
        close = difflib.get_close_matches(name[:100], TASKS, 1) if isinstance(name, str) else []
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(TASKS)}"
        raise AuroraError(f"no task {short(name)}; {hint}")
    return TASKS[name]
