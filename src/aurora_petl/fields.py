"""Settings whose fields pydantic checks when they are made; what is wrong with one is told in one line.

A field says its range or its choices where it stands: ``warmup: float = number(0.0, 0, 1)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs

from .errors import AuroraError, did_you_mean, short

CONFIG = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", arbitrary_types_allowed=True, defer_build=True)
# A value of text, numbers, true, false, null, lists and mappings alone: YAML knows dates and sets as well.
if TYPE_CHECKING:
    Plain = Any
else:
    Plain = JsonValue
Place = Annotated[str, "a path, which may hold bytes that are not UTF-8"]

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
_DEEPEST = 10  # levels of lists and mappings in a value


def number(default: float | None, low: float, high: float) -> Any:
    """A field that lies between ``low`` and ``high``, both included."""
    return Field(default=default, ge=low, le=high)


@dataclass(config=CONFIG)
class Settings:
    """What all settings have in common: they are made of right values or not at all.

    Raises:
        AuroraError: at the first field that does not exist, or whose value is of another type or outside its range.
    """

    prefix: ClassVar[str] = ""  # what messages put before a field's name, such as ``train.``
    owner: ClassVar[str] = "there is"  # and before a field that does not exist: ``method lora has``

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        field = fields_of(cls)[name]
        if not set(field.metadata) & set(Place.__metadata__):  # type: ignore[attr-defined]
            _check_texts(value, f"{cls.prefix}{name}")
        return _spelled(value, field.annotation)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            if not isinstance(values, ArgsKwargs):  # a section of other settings, which tell it
                raise
            raise AuroraError(_told(cls, error, values.kwargs or {})) from error


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """The fields of settings by name."""
    return kind.__pydantic_fields__  # type: ignore[attr-defined, no-any-return]


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    """The range of a field, both ends included; None if it has none."""
    ends = {end: getattr(part, end) for part in field.metadata for end in ("ge", "le") if hasattr(part, end)}
    return (ends["ge"], ends["le"]) if ends else None


def _spelled(value: Any, hint: Any) -> Any:
    """The value as fields of type ``hint`` have it: 1e-3, which YAML reads as text, as a number, and 8.0 as 8."""
    kinds = _parts(hint)
    if float in kinds and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _check_texts(value: Any, where: str, depth: int = 0) -> None:
    """Check that all text in a value can be written as UTF-8, which half of a surrogate pair cannot."""
    if depth > _DEEPEST:
        raise AuroraError(f"{where} is nested too deeply")
    if isinstance(value, (dict, list)):
        for part in value:
            _check_texts(part, where, depth + 1)
        if isinstance(value, dict):
            _check_texts(list(value.values()), where, depth)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            place = error.start + 1
            raise AuroraError(f"{where} holds what is no character, at place {place}; write it as UTF-8") from error


def _told(kind: type[Settings], error: ValidationError, given: Mapping[str, Any]) -> str:
    """The first of pydantic's findings about settings of a kind that were made of ``given``."""
    first = error.errors(include_url=False, include_context=False)[0]
    what, (name, *inner), culprit = first["type"], first["loc"] or (short(first["input"]),), first["input"]
    known, name = fields_of(kind), str(name)
    if name not in known:
        sections = (given.get(part, field.get_default(call_default_factory=True)) for part, field in known.items())
        inside = [
            part.prefix + name for part in sections if isinstance(part, Settings) and name in fields_of(type(part))
        ]
        near = f"did you mean {inside[0]}?" if inside else did_you_mean(name[:60], known, "fields are", kind.prefix)
        return f"{kind.owner} no field {kind.prefix}{name[:60]}; {near}"
    where, value = f"{kind.prefix}{name}", given[name] if inner else culprit
    hint, ends = known[name].annotation, bounds(known[name])
    if inner[-1:] == ["[key]"]:
        return f"{where} has the key {short(culprit)}; keys must be text, so write it in quotes"
    if inner and isinstance(value, dict) and (keys := [key for key in inner if key in value]):
        where, value = f"{where}.{str(keys[0])[:60]}", value[keys[0]]
        hint = next(get_args(part)[1] for part in _parts(hint) if get_origin(part) is dict)
    if what == "finite_number":
        return f"{where} is {culprit}; it must be a finite number"
    if what == "invalid-json-value":
        return f"{where} is {short(culprit)}; write it as text, in quotes"
    if ends and isinstance(value, (int, float)) and not isinstance(value, bool) and not ends[0] <= value <= ends[1]:
        spoken = shown(value) if isinstance(value, float) else short(value)
        return f"{where} is {spoken}; it must lie between {shown(ends[0])} and {shown(ends[1])}"
    if what in ("greater_than_equal", "less_than_equal"):
        return f"{where} is {short(culprit)}; it must be {first['msg'].removeprefix('Input should be ')}"
    literals = [part for part in _parts(hint) if get_origin(part) is Literal]
    if literals:
        *others, last = get_args(literals[0])
        return f"{where} is {short(value)}; choose {', '.join(others)} or {last}"
    return f"{where} is {short(value)}; it must be {' or '.join(dict.fromkeys(map(_name, _parts(hint))))}"


def _parts(hint: Any) -> list[Any]:
    """The types that a hint allows, without their ranges."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]


def _name(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(_parts(parts[0])[0], 'values')}" if parts else "a list"
    if origin is dict:
        return "a mapping"
    if is_dataclass(origin):
        return "a mapping of fields"
    return _NAMES.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def shown(bound: float) -> str:
    """A bound as messages and documents write it: 1000000, 0.999, 1e-12."""
    whole = float(bound).is_integer() and abs(bound) < 1e15
    return str(int(bound)) if whole else f"{bound:g}"
