"""Ways to tune a backbone, by name: Aurora, any peft method beside it, heads only, full fine-tuning.

A new one is one `Method` here. The table is read without peft and PyTorch, which a method's ``config`` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import AuroraError, did_you_mean, short

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Method:
    """``config`` makes a peft configuration from the method's options; without one, ``trains`` names what trains."""

    about: str
    config: Callable[..., PeftConfig] | None = None
    trains: str = "nothing"  # nothing | heads | everything

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.config is not None or self.trains != "nothing"


def _aurora(**options: Any) -> PeftConfig:
    from .adapter import AuroraConfig

    return AuroraConfig(**options)


def _lora(**options: Any) -> PeftConfig:
    from peft import LoraConfig

    return LoraConfig(**options)


def _dora(**options: Any) -> PeftConfig:
    return _lora(use_dora=True, **options)


def _vera(**options: Any) -> PeftConfig:
    from peft import VeraConfig

    return VeraConfig(**({"save_projection": False} | options))  # they are drawn again from their seed


METHODS: dict[str, Method] = {
    "aurora": Method("mode approximation: factors shared by all attention matrices", _aurora),
    "lora": Method("peft's LoRA on the same attention matrices", _lora),
    "dora": Method("peft's LoRA with magnitudes", _dora),
    "vera": Method("peft's VeRA on the same attention matrices", _vera),
    "heads": Method("heads only: projections, scale or temperature, ITM head where there is one", trains="heads"),
    "full": Method("full fine-tuning", trains="everything"),
    "zero-shot": Method("the pretrained model as it is"),
}


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        AuroraError: if there is none.
    """
    if name not in METHODS:
        raise AuroraError(f"no method {short(name)}; {did_you_mean(name, METHODS, 'choose one of')}")
    return METHODS[name]
