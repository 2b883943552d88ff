"""Values against the annotations of a signature: the one check, for settings of a config and for callers from Python.

    def __init__(self, train_fraction: Annotated[float, Gt(0), Le(1)] = 1.0)
    data.train_fraction=2: must be > 0 and ≤ 1

pydantic decides; it is imported at the first check, so that a signature costs nothing.
"""

import inspect
import json
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from vitmae.errors import UserError

_Target = TypeVar("_Target", bound=Callable[..., Any])

_SIGNS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤", MinLen: "of length ≥"}
_TYPE_NAMES = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
    dict: "a mapping",
    Mapping: "a mapping",
}


def check_arguments(part: str = "") -> Callable[[_Target], _Target]:
    """Check a function's arguments, or a class's, whoever calls it: a decorator.

    Args:
        part: the part of the settings that the arguments are, such as ``data``; an error names both.

    Raises:
        UserError: at a call, see `check_value`.
    """

    def decorate(target: _Target) -> _Target:
        if isinstance(target, type):
            setattr(target, "__init__", check_arguments(part)(getattr(target, "__init__")))  # noqa: B009, B010
            return target
        signature = inspect.signature(target)

        @wraps(target)
        def checked(*args: Any, **kwargs: Any) -> Any:
            annotations = annotations_of(target)
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in annotations:
                    check_value(f"{part}.{name}" if part else name, value, annotations[name])
            return target(*args, **kwargs)

        return cast(_Target, checked)

    return decorate


@cache
def annotations_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments, or of a class's; none where only a type checker can resolve them."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except NameError:
        return {}


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Compare a value with an annotation: a whole number passes for a number, a list for a tuple, a text for a path.

    What no setting can hold, such as a module, passes.

    Args:
        name: as it is written on a command line, such as ``data.train_fraction``.
        value: what was given.
        annotation: a type, with limits as in ``Annotated[float, Gt(0), Le(1)]``.

    Raises:
        UserError: one line with the name, the value, and what it must be.
    """
    try:
        text = json.dumps(value, default=_as_json)
    except TypeError:
        return
    if not _fits(text, annotation):
        raise UserError(f"{name}={value if isinstance(value, str) else text}: must be {_requirement(annotation, text)}")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    return os.fspath(value)


def _fits(text: str, annotation: Any) -> bool:
    """Whether pydantic takes a value in JSON, where strictness asks no more than YAML can say."""
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError:
        return False
    except (PydanticSchemaGenerationError, PydanticUserError):
        pass  # a type that no setting can have
    return True


def _requirement(annotation: Any, text: str | None) -> str:
    """What a value must be, in words.

    Args:
        annotation: of the value.
        text: the value in JSON, if it is known: of a number, the limits suffice.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    words = _TYPE_NAMES.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
    if origin in (typing.Union, UnionType):
        words = " or ".join(dict.fromkeys(_requirement(choice, text) for choice in inner))
    elif origin is typing.Literal:
        *most, last = map(str, inner)
        words = f"{', '.join(most)} or {last}" if most else last
    elif origin is typing.Annotated:
        stated = [limit for entry in inner[1:] for limit in getattr(entry, "metadata", [entry])]  # of pydantic's Field
        limits = [limit for limit in stated if type(limit) in _SIGNS]
        words = " and ".join(f"{_SIGNS[type(limit)]} {astuple(limit)[0]}" for limit in limits)
        if text is None:
            words = f"{_requirement(inner[0], None)} {words}"
        elif not _fits(text, inner[0]):
            words = _requirement(inner[0], text)
    elif origin is tuple:
        words = f"a list of {len(inner)}, each {_requirement(inner[0], None)}"
    elif inspect.isclass(origin) and issubclass(origin, Sequence):
        words = f"a list, each {_requirement(inner[0], None)}"
    elif is_dataclass(annotation):
        words = "a mapping"
    return words
