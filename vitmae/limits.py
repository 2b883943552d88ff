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
from dataclasses import astuple
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from vitmae.errors import UserError

Text = Annotated[str, MinLen(1)]
"""A name or a path: an empty one would stand for the working directory."""

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""Of every random draw: the widest range that torch, numpy and scikit-learn share."""

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

    A number must be finite. Where the annotation is a class of this project, the value must be an instance of it.

    Args:
        name: the setting as on a command line, such as ``data.train_fraction``.
        value: the value to check.
        annotation: a type, with limits as in ``Annotated[float, Gt(0), Le(1)]``.

    Raises:
        UserError: the annotation does not allow the value; the line names the setting, the value and the allowed range.
    """
    text = _as_json(value)
    if not _fits(value, text, annotation):
        shown = f"={value if isinstance(value, str) else text}" if text else f": it is of type {type(value).__name__}"
        raise UserError(f"{name}{shown}: must be {_requirement(annotation, value, text)}")
    if text is not None and not _is_finite(value):
        raise UserError(f"{name}={text}: must be finite and {_requirement(annotation, value, text)}")


def _as_json(value: Any) -> str | None:
    """A value in JSON, as a setting would be written; None: no setting can hold it, such as a module."""
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError):  # ValueError: it contains itself
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    if isinstance(value, Integral):  # numpy's
        return int(value)
    if isinstance(value, Real):
        return float(value)
    path = os.fspath(value)
    if isinstance(path, bytes):
        raise TypeError("bytes are no text")
    return path


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return False
    return True


def _fits(value: Any, text: str | None, annotation: Any) -> bool:
    """Whether an annotation allows a value; pydantic compares its JSON, because YAML can express the same as JSON."""
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return any(_fits(value, text, choice) for choice in typing.get_args(annotation))
    if is_own_class(annotation):
        return text is None if typing.Protocol in annotation.__bases__ else isinstance(value, annotation)
    try:
        adapter = TypeAdapter(annotation)
        if text is None:
            adapter.validate_python(value, strict=True)
        else:
            adapter.validate_json(text, strict=True)
    except ValidationError:
        return False
    except (PydanticSchemaGenerationError, PydanticUserError):
        pass  # a type that pydantic does not know, such as a list of tensors
    return True


def is_own_class(annotation: Any) -> bool:
    """Whether it is a class of which settings cannot write a value."""
    return inspect.isclass(annotation) and annotation not in (*_TYPE_NAMES, object, Any)


def _requirement(annotation: Any, value: Any, text: str | None, is_inner: bool = False) -> str:
    """What a value must be, in words: ``> 0 and ≤ 1``.

    Args:
        annotation: the annotation of the value.
        value: the value. If its type is right, the words name the limits alone.
        text: the value in JSON.
        is_inner: the annotation is that of the values in a list; the words name type and limits.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    words = _TYPE_NAMES.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
    if origin in (typing.Union, UnionType):
        words = " or ".join(dict.fromkeys(_requirement(choice, value, text, is_inner) for choice in inner))
    elif origin is typing.Literal:
        *most, last = dict.fromkeys(map(str, inner))
        words = f"{', '.join(most)} or {last}" if most else last
    elif origin is typing.Annotated:
        stated = [limit for entry in inner[1:] for limit in getattr(entry, "metadata", [entry])]  # several in a Field
        limits = " and ".join(_limit(limit, inner[0]) for limit in stated if type(limit) in _SIGNS)
        if is_inner and annotation != Text:
            words = f"{_requirement(inner[0], value, text, True)} {limits}"
        else:
            words = limits if is_inner or _fits(value, text, inner[0]) else _requirement(inner[0], value, text)
    elif origin is tuple:
        words = f"a list of {len(inner)}, each {_requirement(inner[0], value, text, True)}"
    elif inspect.isclass(origin) and issubclass(origin, Sequence):
        words = f"a list, each {_requirement(inner[0], value, text, True)}"
    elif is_own_class(annotation):
        words = f"a {annotation.__name__}"
    return words


def _limit(limit: Any, annotation: Any) -> str:
    if isinstance(limit, MinLen) and annotation is str:
        return "a text that is not empty"
    return f"{_SIGNS[type(limit)]} {astuple(limit)[0]}"
