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
    """Numbers of the objective. Those that are null are the model's own: BLIP has a queue, which is fitted to the data,
    a momentum encoder and soft targets, and ITM ranks its candidates; a dual encoder has none of these."""

    name: str = "retrieval"
    queue_size: int | None = number(None, 0, 10**7)
    momentum: float | None = number(None, 0, 1)
    # copy: averages start as the model, the queue empty; checkpoint: as in its checkpoint
    momentum_init: str = choice("copy", "checkpoint")
    # weight of the momentum encoder's soft targets, reached after the first epoch
    alpha: float | None = number(None, 0, 1)
    itm_weight: float = number(1.0, 0, 1000)  # of ITM beside ITC, where the model has a second stage
    negative_all_rank: bool = False  # whether ITM's hard negatives come from the batches of all ranks
    max_tokens: int = number(0, 0, 512)  # where texts are cut; 0: the model's own length
    # of the candidates. itm: the k_test best by ITC, by match logit + beta * similarity | itc: by similarity alone |
    # choose: of these, with several betas, what the validation split likes best
    ranking: str | None = choice(None, "itm", "itc", "choose")
    k_test: int | None = number(None, 0, 10**6)
    beta: float = number(0.0, -(10**6), 10**6)
    frame_attention: bool = True  # texts weigh the frames of a clip by their similarity

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens == 1:  # tokenizers would leave such texts whole: their first and last token are two
            raise AuroraError("task.max_tokens is 1; set it to 2 or more, or to 0 for the model's own length")

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
