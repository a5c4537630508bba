"""Settings of the tasks, apart from their code so that a recipe is read without PyTorch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..errors import AuroraError, did_you_mean, short
from ..fields import CONFIG, Settings, number


@dataclass(config=CONFIG)
class TaskSettings(Settings):
    """What every task has."""

    prefix: ClassVar[str] = "task."
    texts: ClassVar[str] = "captions"  # what its data have beside the pictures
    name: str = ""
    frames: int = number(0, 0, 1024)  # of a clip in training; pictures need none
    test_frames: int = number(0, 0, 1024)  # of a clip in evaluation; 0: as many as in training

    @property
    def evaluation_frames(self) -> int:
        return self.test_frames or self.frames

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that the model reads or writes; 0 if the task has no texts."""
        return 0


@dataclass(config=CONFIG)
class RetrievalSettings(TaskSettings):
    """Numbers of the objective. Those that are null are the model's own: BLIP has a queue, which is fitted to the data,
    a momentum encoder and soft targets, and ITM ranks its candidates; a dual encoder has none of these."""

    name: str = "retrieval"
    queue_size: int | None = number(None, 0, 10**7)
    momentum: float | None = number(None, 0, 1)
    # copy: averages start as the model, the queue empty; checkpoint: as in its checkpoint
    momentum_init: Literal["copy", "checkpoint"] = "copy"
    # weight of the momentum encoder's soft targets, reached after the first epoch
    alpha: float | None = number(None, 0, 1)
    itm_weight: float = number(1.0, 0, 1000)  # of ITM beside ITC, where the model has a second stage
    # pairs whose graph is held at once: each chunk is computed once more going back; 0: the whole batch
    chunk_size: int = number(0, 0, 65_536)
    negative_all_rank: bool = False  # whether ITM's hard negatives come from the batches of all ranks
    max_tokens: int | None = number(None, 2, 512)  # where texts are cut
    # of the candidates. itm: the k_test best by ITC, by match logit + beta * similarity | itc: by similarity alone |
    # choose: of these, with several betas, what the validation split likes best
    ranking: Literal["itm", "itc", "choose"] | None = None
    k_test: int | None = number(None, 0, 10**6)
    beta: float = number(0.0, -(10**6), 10**6)
    frame_attention: bool = True  # texts weigh the frames of a clip by their similarity

    @property
    def longest_text(self) -> int:
        return self.max_tokens or 0


@dataclass(config=CONFIG)
class VQASettings(TaskSettings):
    """Numbers of the objective and of inference. Those that are null are the model's own: BLIP's are those of its VQA
    fine-tuning, whose inference by ``generate`` has 3 beams where Aurora's released code has 1."""

    texts: ClassVar[str] = "questions"
    name: str = "vqa"
    # rank: out of the data's candidates | generate: written word by word
    inference: Literal["rank", "generate"] | None = None
    prompt: str = ""  # what is asked, with {question} for the question; empty: the model's own
    k_test: int = number(128, 1, 10**6)  # candidates that rank rescores
    num_beams: int = number(1, 1, 100)  # of generate
    label_smoothing: float | None = number(None, 0, 1)  # in the loss, and in the scores of rank
    max_question_tokens: int | None = number(None, 2, 512)
    max_answer_tokens: int = number(10, 2, 512)  # that generate writes, BLIP's [DEC] included

    @property
    def longest_text(self) -> int:
        return max(self.max_question_tokens or 0, self.max_answer_tokens)


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
        near = did_you_mean(name if isinstance(name, str) else "", TASKS, "choose one of")
        raise AuroraError(f"no task {short(name)}; {near}")
    return TASKS[name]
