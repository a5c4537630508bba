"""`AuroraConfig`: what to adapt, at which rank, with which core, and what to add where texts meet pictures."""

from __future__ import annotations

import math
import re
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from aenum import extend_enum
from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from ..files import write_text
from .card import PEFT_TYPE, PEFT_TYPE_IN_FILES, REQUIRES, with_loading

# peft has no hook for methods outside its tree, so its enum gains a member here, in memory only. The member
# AURORA is left to the unrelated package `aurora-peft`; both can be installed.
if PEFT_TYPE not in PeftType.__members__:
    extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)

BIASES = ("none", "all", "aurora_only")
CORES = ("diagonal", "full")
CONTEXTS = ("batch", "released")
GATES = ("scale_shift", "released")

# Linear layers that hold several matrices stacked by rows: name (last part, or a regex) -> number of slices.
FUSED_SLICES = {"qkv": 3}


@dataclass
class AuroraConfig(PeftConfig):
    """Configuration of `AuroraModel` (mode approximation, arXiv 2305.08381, section 3.2).

    `context` and `gate` add the parts of section 3.3, in models whose family has a place for them (see `additions.py`);
    without them it is the plain adapter.

    Raises:
        ValueError: if a field has a value outside its range; the message names field, value and choices.

    Example:
        The released code can adapt more of the vision tower: its attention output and both layers of its MLPs, a
        768 -> 3072 layer as four slices of 768 rows, a 3072 -> 768 layer as four of 768 columns. In BLIP:

        >>> config = AuroraConfig(
        ...     target_modules=["qkv", "query", "key", "value", "projection", "fc1", "fc2"],
        ...     fused_slices={"fc1": 4},
        ...     fused_columns={"fc2": 4},
        ... )
        >>> config.split_of("vision_model.encoder.layers.0.mlp.fc2")
        (1, 4)
    """

    r: int = field(default=64, metadata={"help": "Rank R: the number of components shared by all slices."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Linear layers to adapt: a list of name endings, a regex over full names, or 'all-linear'. "
                "None takes the query, key and value layers known for the model's `model_type`."
            )
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave alone: a list of name endings or a regex."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only these layer indexes (with a list of target modules)."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the module list that `layers_to_transform` indexes, if it is ambiguous."},
    )
    core: str = field(
        default="diagonal",
        metadata={
            "help": (
                "'diagonal': the paper's CP form, dW_k = V diag(lambda * P[k]) U^T. 'full': the Tucker form "
                "of the released code, dW_k = V M_k U^T with M_k = sum_s C[:, :, s] P[k, s]."
            )
        },
    )
    scale: float = field(default=1.0, metadata={"help": "Constant factor on every update."})
    dropout: float = field(
        default=0.0,
        metadata={"help": "Rank dropout: the chance that a component is left out of a slice in a training step."},
    )
    fused_slices: dict[str, int] | None = field(
        default=None,
        metadata={
            "help": (
                "Layers that stack several matrices by rows: name ending or regex -> number of slices of "
                "equal height. Added to the built-in table {'qkv': 3}; {'qkv': 1} switches that off."
            )
        },
    )
    fused_columns: dict[str, int] | None = field(
        default=None,
        metadata={
            "help": (
                "Layers that hold several matrices side by side: name ending or regex -> number of slices of equal "
                "width. {'fc2': 4} makes a 3072 -> 768 layer four slices, which share U and V of width 768."
            )
        },
    )
    factor_groups: list[str] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Regexes; layers whose name has a match of the first one share factors U and V of their own, and so on "
                "for each, and all other layers share theirs. ['vision_model'] gives each of two towers its own. None, "
                "as in the paper: all layers share the same."
            )
        },
    )
    context: str | None = field(
        default=None,
        metadata={
            "help": (
                "Informative context enhancement of the fused [CLS] state. 'batch': attention to the batch's texts in "
                "training and to a bank of training texts afterwards, times one learned scalar that starts at 0. "
                "'released': what the released code does, 0.1 times the batch's mean on matching pairs, in training "
                "alone. None: off. For BLIP."
            )
        },
    )
    gate: str | None = field(
        default=None,
        metadata={
            "help": (
                "Gated query transformation of every text layer that cross-attends. 'scale_shift': scaled and shifted "
                "self- and cross-attention outputs join the layer's output through gates that start at 0. 'released': "
                "through the released code's constant 0.1. None: off. For BLIP."
            )
        },
    )
    bias: str = field(
        default="none",
        metadata={
            "help": (
                "Biases of the base model that are trained and saved beside the adapter: 'none', 'all', or "
                "'aurora_only', those of the adapted layers. They are changed in place, so that the model without the "
                "adapter has them too. One adapter of a model may have them."
            )
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved in full beside the adapter, e.g. heads."}
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": (
                "True: V starts at zero, so the adapted model begins as the pretrained one, to the bit. "
                "False draws V, and what else starts at zero, as well (for tests)."
            )
        },
    )
    rank_pattern: InitVar[dict[str, Any] | None] = None  # LoRA's; taken only to say why they are refused
    alpha_pattern: InitVar[dict[str, Any] | None] = None
    requires: InitVar[str | None] = None  # what `to_dict` says to readers of the file

    def __post_init__(
        self, rank_pattern: dict[str, Any] | None, alpha_pattern: dict[str, Any] | None, requires: str | None
    ) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name, given in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
            if given:
                raise ValueError(
                    f"`{name}` is {given!r}, but all layers share the same factors, so there is one `r` and one "
                    "`scale` for all. Please leave it out, or add a second adapter for those layers."
                )
        self.peft_type = PeftType(PEFT_TYPE)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as peft expects it
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

        if not _is_int(self.r) or self.r <= 0:
            raise ValueError(f"`r` should be a positive integer but the value passed is {self.r!r}")
        for name, choices in (("core", CORES), ("bias", BIASES)):
            if (choice := getattr(self, name)) not in choices:
                raise ValueError(f"`{name}` should be one of {', '.join(map(repr, choices))} but is {choice!r}")
        for name, choices in (("context", CONTEXTS), ("gate", GATES)):
            if (form := getattr(self, name)) not in (None, *choices):
                raise ValueError(f"`{name}` should be None, {' or '.join(map(repr, choices))} but is {form!r}")
        if not _is_number(self.scale):
            raise ValueError(f"`scale` should be a finite number but the value passed is {self.scale!r}")
        if not _is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` should be at least 0 and less than 1 but is {self.dropout!r}")
        if not isinstance(self.init_weights, bool):
            raise ValueError(f"`init_weights` should be True or False but is {self.init_weights!r}")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` needs `target_modules` as a list, "
                f"but that is the string {self.target_modules!r}"
            )
        if isinstance(self.factor_groups, str):
            self.factor_groups = [self.factor_groups]
        if isinstance(self.modules_to_save, str):  # peft would take every letter for a name
            self.modules_to_save = [self.modules_to_save]
        regexes: dict[str, Any] = {"factor_groups": self.factor_groups}
        for name in ("target_modules", "exclude_modules"):
            if isinstance(pattern := getattr(self, name), str):
                regexes[name] = [pattern]
        regexes |= {"fused_slices": self.fused_slices, "fused_columns": self.fused_columns}
        for name, patterns in regexes.items():
            for pattern in patterns or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"`{name}` holds {pattern!r}, which is no regex: {error}") from error
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"`layers_pattern` is {self.layers_pattern!r} but `layers_to_transform` is not set")
        # Resolved here, so that the saved file says what was done, whatever later versions of the table hold.
        rows = dict(self.fused_slices or {})
        self.fused_slices = rows | {name: n for name, n in FUSED_SLICES.items() if name not in rows}
        self.fused_columns = dict(self.fused_columns or {})
        for table in ("fused_slices", "fused_columns"):
            for name, slices in getattr(self, table).items():
                if not _is_int(slices) or slices <= 0:
                    raise ValueError(f"`{table}[{name!r}]` should be a positive integer but is {slices!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved. What peft needs to read the file is said in it, and first of all in the name of
        the method, the only field that peft repeats where the method is not known to it."""
        return {**super().to_dict(), "peft_type": PEFT_TYPE_IN_FILES, "requires": REQUIRES}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json` as peft does, and how to load the adapter into the model card that peft has
        written beside it, in place of the blanks of peft's template."""
        super().save_pretrained(save_directory, **kwargs)
        if (path := Path(save_directory) / "README.md").is_file():
            write_text(path, with_loading(path.read_text(encoding="utf-8")))

    def group_of(self, name: str) -> int:
        """Which of the groups of layers that share factors the layer `name` is in, from 1; 0 if in none."""
        patterns = self.factor_groups or ()
        return next((number for number, pattern in enumerate(patterns, 1) if re.search(pattern, name)), 0)

    def split_of(self, name: str) -> tuple[int, int]:
        """How many matrices the linear layer `name` stacks by rows, and how many it holds side by side."""
        return _look_up(self.fused_slices, name), _look_up(self.fused_columns, name)


def _look_up(table: dict[str, int] | None, name: str) -> int:
    for pattern, slices in (table or {}).items():
        if name == pattern or name.endswith(f".{pattern}") or re.fullmatch(pattern, name):
            return slices
    return 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
