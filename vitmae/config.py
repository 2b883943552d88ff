"""Settings: find the YAML files, check a node against a signature, build what the node names.

A node with `_target_` names a class or function; its other keys are the arguments. `check_settings` compares them with
the signature, so a wrong key or value is reported at the start of a command, not after an hour.
Nothing heavy is imported until a node is checked or built: `--help` and `--cfg job` answer at once.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vitmae.errors import UserError
from vitmae.limits import Text, annotations_of, check_value, is_own_class

_DIRECTIVES = ("_target_", "_partial_", "weights")
"""Keys of a node that are not arguments; `weights` is loaded after the node is built (`vitmae.weights.load`)."""


def config_dir() -> Path:
    """The folder of config.yaml: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"conf/config.yaml is neither in {package} nor beside it: install vitmae again")


def resolved(config: DictConfig) -> dict[str, Any]:
    """Resolve a composed config to dicts, lists and scalars.

    Raises:
        UserError: a required value is missing, or an interpolation refers to nothing.
    """
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=…") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(settings, dict)
    return typing.cast(dict[str, Any], settings)


def setting_keys(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """All keys of nested settings as they are written on the command line: ``model``, ``model.mask_ratio``, …"""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from setting_keys(value, f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """``": did you mean …?"`` with the nearest known key; empty if no key is near."""
    name = key.rpartition(".")[2]
    for near in get_close_matches(key, list(known), n=5):
        if get_close_matches(name, [near.rpartition(".")[2]]):  # a common path alone does not make keys similar
            return f": did you mean {near}?"
    return ""


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Call what a node's `_target_` names.

    Args:
        node: plain settings; nodes inside it are built first. With ``_partial_: true`` the result is a function of
            the remaining arguments.
        arguments: further arguments that settings cannot hold, such as modules.

    Raises:
        UserError: an argument is missing or unknown, or what is called raises it.
    """
    target = locate(node["_target_"])
    settings = {key: _built(value) for key, value in node.items() if key not in _DIRECTIVES} | arguments
    if node.get("_partial_"):
        return partial(target, **settings)
    try:
        inspect.signature(target).bind(**settings)
    except TypeError as error:
        raise UserError(
            f"{node['_target_']}: {error}: give each setting that it needs, and none that it has not"
        ) from None
    return target(**settings)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _built(inner) for key, inner in value.items()}
    return [_built(inner) for inner in value] if isinstance(value, list) else value


def locate(target: str) -> Callable[..., Any]:
    """The class or function that a dotted name stands for.

    Raises:
        UserError: the name cannot be imported.
    """
    if not isinstance(target, str):
        raise UserError(f"_target_={target}: must be the full name of a class, package.Class")
    module, _, name = target.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(
            f"_target_={target} cannot be found: {error}: check the name, and whether its folder is on PYTHONPATH"
        ) from None
    if not callable(found):
        raise UserError(
            f"_target_={target}: must be the full name of a class or function, not a {type(found).__name__}"
        )
    return found


def takes(target: str, argument: str) -> bool:
    """Whether a `_target_` has an argument of this name."""
    return argument in inspect.signature(locate(target)).parameters


def check_settings(
    settings: Mapping[str, Any], path: str = "", homes: Mapping[str, Callable[..., Any]] | None = None
) -> None:
    """Compare every node with signatures: that of its `_target_`, and that of its home.

    A missing argument is not an error here: some are only known at run time.

    Args:
        settings: plain values.
        path: the path of these settings, as on a command line: ``model.optimizer``.
        homes: by path, the signatures of nodes without a `_target_`; for a node with one, further limits of its values.

    Raises:
        UserError: the signature has no such key (the message names the nearest one), or the annotation does not
            allow a value, see `vitmae.limits`.
    """
    homes = homes or {}
    if "_target_" in settings:
        _check_node(settings, path, locate(settings["_target_"]), homes.get(path))
    elif path in homes:
        _check_node(settings, path, homes[path])
    for key, value in settings.items():
        inner = f"{path}.{key}" if path else str(key)
        for number, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, Mapping):
                check_settings(child, f"{inner}[{number}]" if isinstance(value, list) else inner, homes)


def _check_node(
    node: Mapping[str, Any], path: str, target: Callable[..., Any], limits: Callable[..., Any] | None = None
) -> None:
    parameters = inspect.signature(target).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    is_open = len(names) < len(parameters)
    annotations = annotations_of(target) | (annotations_of(limits) if limits else {})
    prefix = f"{path}." if path else ""
    for key, value in node.items():
        if key == "weights":
            check_value(f"{prefix}{key}", value, Text | None)
        if key in _DIRECTIVES:
            continue
        if key not in names and not is_open:
            near = did_you_mean(f"{prefix}{key}", [f"{prefix}{name}" for name in names])
            raise UserError(f"unknown setting {prefix}{key}{near}")
        if key in annotations and not _holds_nodes(value):
            if is_own_class(annotations[key]):
                raise UserError(f"{prefix}{key}={value}: must be a mapping with _target_, the class to build")
            check_value(f"{prefix}{key}", value, annotations[key])


def _holds_nodes(value: Any) -> bool:
    """Whether a value contains nodes; those are checked by themselves."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return (isinstance(value, Mapping) and "_target_" in value) or any(_holds_nodes(child) for child in inner)
