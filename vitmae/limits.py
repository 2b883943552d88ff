"""The limits of settings: compare a value with the annotation in a signature.

    def __init__(self, train_fraction: Annotated[float, Gt(0), Le(1)] = 1.0)
    data.train_fraction=2: must be > 0 and ≤ 1

The same check serves settings of a config and callers from Python. It is done by pydantic, which is imported at the
first check only.
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
    """Make a decorator that checks the arguments of every call of a function or class.

    Args:
        part: the place of these arguments in the settings, such as ``data``; error messages show ``data.batch_size``.

    Raises:
        UserError: when the decorated function is called, see `check_value`.
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
    """The annotations of the arguments of a function or class; empty if only a type checker can resolve them."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except NameError:
        return {}


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Compare a value with an annotation; a whole number is also a number, a list also a tuple, a text also a path.

    Values that no setting can hold, such as modules, are not checked.

    Args:
        name: the setting as on a command line, such as ``data.train_fraction``.
        value: the value to check.
        annotation: a type, with limits as in ``Annotated[float, Gt(0), Le(1)]``.

    Raises:
        UserError: the annotation does not allow the value; the line names the setting, the value and the allowed range.
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
    """Whether pydantic accepts a value in JSON; its strict mode for JSON allows what YAML can express."""
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError:
        return False
    except (PydanticSchemaGenerationError, PydanticUserError):
        pass  # a type that no setting has
    return True


def _requirement(annotation: Any, text: str | None) -> str:
    """What a value must be, in words: ``> 0 and ≤ 1``.

    Args:
        annotation: the annotation of the value.
        text: the value in JSON. If its type is right, the words name the limits alone; None: they name type and limits.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    words = _TYPE_NAMES.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
    if origin in (typing.Union, UnionType):
        words = " or ".join(dict.fromkeys(_requirement(choice, text) for choice in inner))
    elif origin is typing.Literal:
        *most, last = map(str, inner)
        words = f"{', '.join(most)} or {last}" if most else last
    elif origin is typing.Annotated:
        stated = [limit for entry in inner[1:] for limit in getattr(entry, "metadata", [entry])]  # several in a Field
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
