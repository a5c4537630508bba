"""Settings of the tasks, apart from their code so that a recipe is read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AuroraError


@dataclass
class RetrievalSettings:
    """Numbers of the objective; defaults are BLIP's but for the queue, which fits the data (`fit_queue`)."""

    queue_size: int = 57_600
    momentum: float = 0.995
    momentum_init: str = "copy"  # copy: averages start as the model, the queue empty; checkpoint: as in its checkpoint
    alpha: float = 0.4  # weight of the momentum encoder's soft targets, reached after the first epoch
    itm_weight: float = 1.0
    max_tokens: int = 35
    k_test: int = 128
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.momentum_init not in ("copy", "checkpoint"):
            raise AuroraError(f"task.momentum_init is {self.momentum_init!r}; choose copy or checkpoint")
        for name, low, high in (
            ("queue_size", 0, 10**7),
            ("momentum", 0, 1),
            ("alpha", 0, 1),
            ("itm_weight", 0, 1e3),
            ("max_tokens", 2, 512),
            ("k_test", 0, 10**6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise AuroraError(f"task.{name} is {value}; it must lie between {low} and {high}")
