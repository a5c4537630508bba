"""Options of a method, by name, type and range."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, cast, get_type_hints

from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import AuroraError, first_line, short
from .fields import CONFIG, Settings, number
from .methods import Method, find_method

MOST_RANK = 8192
Slices = Annotated[int, Field(ge=1, le=65_536)]
Layer = Annotated[int, Field(ge=0, le=100_000)]


@dataclass(config=CONFIG)
class AuroraOptions(Settings):
    """What a recipe says of `AuroraConfig`, whose fields these are; apart from it, so that a recipe is read and refused
    without peft and PyTorch."""

    prefix: ClassVar[str] = "method_options."
    owner: ClassVar[str] = "method aurora has"
    r: int = number(64, 1, MOST_RANK)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[Layer] | Layer | None = None
    layers_pattern: list[str] | str | None = None
    core: Literal["diagonal", "full"] = "diagonal"
    scale: float = number(1.0, -(10**6), 10**6)
    dropout: float = number(0.0, 0, 0.999)
    fused_slices: dict[str, Slices] | None = None
    fused_columns: dict[str, Slices] | None = None
    factor_groups: list[str] | str | None = None
    context: Literal["batch", "released"] | None = None
    gate: Literal["scale_shift", "released"] | None = None
    bias: Literal["none", "all", "aurora_only"] = "none"
    modules_to_save: list[str] | None = None
    init_weights: bool = True


# Ranges of numbers of peft's configurations, which have none, and types that peft computes with beside the declared
# ones. Of ``init_lora_weights`` peft declares a text with a number to fill in: pissa_niter_[number of iters].
_RANGES = {
    "r": (1, MOST_RANK),
    "lora_alpha": (-(10**6), 10**6),
    "lora_dropout": (0, 0.999),  # below 0 peft leaves it out in silence
    "vera_dropout": (0, 0.999),
    "d_initial": (-(10**6), 10**6),
    "projection_prng_key": (0, 2**63 - 1),
}
_WIDER = {"lora_alpha": float, "init_lora_weights": Annotated[str, Field(pattern=r"^pissa_niter_\d+$")]}


def typed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the method ``name`` in the types of its fields: 8.0 becomes 8.

    Of methods other than aurora this imports peft.

    Raises:
        AuroraError: if there is no such method, or at the first option that it has not, or whose value is of another
            type or outside its range.
    """
    method = find_method(name)
    if not options:
        return {}
    if method.config is None:
        raise AuroraError(f"method {name} takes no method_options, got {short(', '.join(options))[1:-1]}")
    made = (AuroraOptions if name == "aurora" else _options_of(name, method))(**options)
    typed = {key: getattr(made, key) for key in options}
    for key, value in typed.items():
        for pattern in _patterns(key, value):
            if isinstance(pattern, str):
                _compile(pattern, f"method_options.{key}")
    return typed


@cache
def _options_of(name: str, method: Method) -> type[Settings]:
    """Settings with the fields of a method's own peft configuration."""
    from peft import PeftConfig

    assert method.config is not None
    config = type(method.config())
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    fields: list[Any] = []
    for key, hint in get_type_hints(config).items():
        if key in config.__dataclass_fields__ and key not in common:
            hint = hint | _WIDER[key] if key in _WIDER else hint
            low, high = _RANGES.get(key, (None, None))
            fields.append((key, Annotated[hint, Field(ge=low, le=high)] if key in _RANGES else hint, None))
    about = {"prefix": AuroraOptions.prefix, "owner": f"method {name} has"}
    made = dataclasses.make_dataclass(config.__name__, fields, bases=(Settings,), namespace=about)
    return cast(type[Settings], dataclass(config=CONFIG)(made))


def _patterns(key: str, value: Any) -> Iterable[Any]:
    """The regular expressions among the values of an option."""
    if isinstance(value, dict) or (key == "factor_groups" and isinstance(value, list)):
        return value
    return [value] if key.endswith("_modules") or key == "factor_groups" else []


def _compile(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AuroraError(f"{where}: {short(pattern)} is no regular expression: {first_line(error)}") from error
