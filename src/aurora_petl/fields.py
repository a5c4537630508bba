"""Fields of settings that say which values they take: a type, and beside the default a range or choices; all of it is
checked here."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .errors import AuroraError, short

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
_DEEPEST = 10  # levels of lists and mappings in a value


def number(default: Any, low: float, high: float) -> Any:
    """A field of a dataclass that lies between ``low`` and ``high``, both included."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def choice(default: str | None, *others: str) -> Any:
    """A field of a dataclass that is its default or one of ``others``."""
    return dataclasses.field(default=default, metadata={"choices": (*([] if default is None else [default]), *others)})


def check(settings: Any, prefix: str) -> None:
    """Check every field of a dataclass against its range or its choices.

    Args:
        prefix: what messages put before a field's name, such as ``train.``.

    Raises:
        AuroraError: at the first field whose value is outside.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if bounds := field.metadata.get("range"):
            low, high = bounds
            if value is None:
                continue
            if not low <= value <= high:
                given = shown(value) if isinstance(value, float) and math.isfinite(value) else short(value)
                raise AuroraError(
                    f"{prefix}{field.name} is {given}; it must lie between {shown(low)} and {shown(high)}"
                )
        elif (choices := field.metadata.get("choices")) and value not in (*choices, field.default):
            raise AuroraError(
                f"{prefix}{field.name} is {short(value)}; choose {', '.join(choices[:-1])} or {choices[-1]}"
            )


def typed(value: Any, hint: Any, where: str) -> Any:
    """A value as the type ``hint`` has it: 1e-3, which YAML reads as text, becomes a number, and 8.0 a whole number.

    Raises:
        AuroraError: if the value is of another type, or no finite number.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise AuroraError(f"{where} is {value}; it must be a finite number")
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not any(_fits(value, kind) for kind in kinds):
        names = list(dict.fromkeys(_name(kind) for kind in kinds))
        raise AuroraError(f"{where} is {short(value)}; it must be {' or '.join(names)}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:  # peft writes one with a number to fill in: pissa_niter_[number of iters]
        return isinstance(value, str) and any(
            value == part or ("[" in part and value.startswith(part.split("[")[0])) for part in parts
        )
    if origin is tuple:  # YAML has lists alone
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is list:
        return isinstance(value, list) and all(_fits(part, parts[0]) for part in value if parts)
    if origin is dict:
        return isinstance(value, dict) and (
            not parts or all(_fits(key, parts[0]) and _fits(part, parts[1]) for key, part in value.items())
        )
    if origin in (int, float):
        return isinstance(value, (int, float) if origin is float else int) and not isinstance(value, bool)
    return isinstance(origin, type) and isinstance(value, origin)


def _name(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(parts[0], 'values')}" if parts else "a list"
    if origin is dict:
        return "a mapping"
    return _NAMES.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Check that a value is made of text, numbers, true, false, null, lists and mappings with keys of text alone.

    Raises:
        AuroraError: if YAML gave something else, such as a date, a number that is not finite, or text with half of a
            surrogate pair.
    """
    if depth > _DEEPEST:
        raise AuroraError(f"{where} is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise AuroraError(f"{where} has the key {short(key)}; keys must be text, so write it in quotes")
            check_text(key, where)
            check_plain(part, f"{where}.{key[:60]}", depth + 1)
    elif isinstance(value, list):
        for part in value:
            check_plain(part, where, depth + 1)
    elif isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise AuroraError(f"{where} is {value}; it must be a finite number")
    elif not isinstance(value, (int, float, NoneType)):
        raise AuroraError(f"{where} is {short(value)}; write it as text, in quotes")


def check_text(value: str, where: str) -> None:
    """Check that a text can be written as UTF-8.

    Raises:
        AuroraError: if it holds half of a surrogate pair, which is also what Python makes of bytes that are not UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise AuroraError(
            f"{where} holds what is no character, at place {error.start + 1}; write it as UTF-8"
        ) from error


def shown(bound: float) -> str:
    """A bound as messages and documents write it: 1000000, 0.999, 1e-12."""
    whole = float(bound).is_integer() and abs(bound) < 1e15
    return str(int(bound)) if whole else f"{bound:g}"
