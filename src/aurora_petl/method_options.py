"""Options of a method by name and type, against the fields of its peft configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, get_type_hints

from peft import PeftConfig

from .errors import AuroraError, first_line, short
from .fields import typed

MOST_RANK = 8192
_WIDER = {"lora_alpha": float}  # peft computes with more than it declares


def typed_options(name: str, config: Callable[..., PeftConfig], options: dict[str, Any]) -> dict[str, Any]:
    """The options of the method ``name``, which ``config`` makes a configuration of, in the types of its fields.

    Raises:
        AuroraError: at the first option that the configuration has not, or whose value is not of its type.
    """
    kind = type(config())
    own = {field.name for field in fields(kind)} - {field.name for field in fields(PeftConfig)}
    hints = {key: _WIDER.get(key, hint) for key, hint in get_type_hints(kind).items() if key in own}
    made = {}
    for key, value in options.items():
        where = f"method_options.{key[:60]}"
        if key not in hints:
            raise AuroraError(f"method {name} has no {where}; {did_you_mean(key, hints)}")
        made[key] = value = typed(value, hints[key], where)
        if key == "r" and not 1 <= value <= MOST_RANK:
            raise AuroraError(f"{where} is {short(value)}; it must lie between 1 and {MOST_RANK}")
        if key.endswith("dropout") and not 0 <= value < 1:  # below 0 peft leaves it out in silence
            raise AuroraError(f"{where} is {short(value)}; it must lie between 0 and 1, 1 left out")
        patterns = value if isinstance(value, dict) else [value] if key.endswith("_modules") else []
        for pattern in patterns:
            if isinstance(pattern, str):
                _compile(pattern, where)
    return made


def _compile(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AuroraError(f"{where}: {short(pattern)} is no regular expression: {first_line(error)}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of the ``known`` ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name[:100], known, 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
