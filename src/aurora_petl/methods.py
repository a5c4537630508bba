"""Ways to tune a backbone, by name: Aurora, peft's methods beside it, heads only, full fine-tuning.

A new one is one `Method` or, of peft, one name here. The table is read without peft and PyTorch, which a method's
``config`` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


# peft's other methods, by the names that its configurations have in lower case: those that adapt the layers which
# ``target_modules`` names, need nothing else, and score the same after they were saved and loaded
OTHERS = (
    *("beft", "boft", "c3a", "delora", "fourierft", "glora", "gralora", "hira", "hra", "lily", "loha", "lokr", "miss"),
    *("peanut", "psoft", "road", "tinylora", "unilora", "vblora", "waveft"),
)


def find_method(name: str) -> Method:
    """The method called ``name``, one of `METHODS` or of peft's `OTHERS`.

    Raises:
        AuroraError: if there is none.
    """
    if name in OTHERS:
        return Method(f"peft's {name}", partial(_of_peft, name.upper()))
    if name not in METHODS:
        guess = did_you_mean(name, [*METHODS, *OTHERS], "choose one of")
        raise AuroraError(f"no method {short(name)}; {guess}")
    return METHODS[name]


def _of_peft(kind: str, **options: Any) -> PeftConfig:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    return config(**options)
