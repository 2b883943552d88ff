"""Which classes a file may build: a checkpoint, a bundle, a run's config.yaml.

To build settings is to call what their `_target_` names, and a file may come from anybody. So each place in the
settings has a list of allowed classes, by their exact names, and everything else in a file is data. A user allows
further classes with `trust=[my_package.MyObjective]`. What a command line itself names is the user's own and is not
checked here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from vitmae.errors import UserError

LISTED: dict[str, tuple[str, ...]] = {
    "model": (
        "vitmae.models.mae.MAE",
        "vitmae.models.masked_patch.MaskedPatch",
        "vitmae.models.supervised.Supervised",
    ),
    "model.optimizer": ("vitmae.recipe.Recipe",),
    "backbone": ("vitmae.backbones.timm_vit.TimmViT",),
    "data": ("vitmae.data.datamodule.ImageData",),
    "data.source": (
        "vitmae.data.sources.cifar.CIFAR",
        "vitmae.data.sources.digits.Digits",
        "vitmae.data.sources.folder.Folder",
        "vitmae.data.sources.parquet.Parquet",
        "vitmae.data.sources.shapes.Shapes",
    ),
    "trainer": ("lightning.Trainer",),
    "logger.*": (
        "vitmae.training.loggers.MetricsFile",
        "vitmae.training.loggers.tensorboard",
        "vitmae.training.wandb_logger.Wandb",
    ),
    "probe": ("vitmae.training.online.OnlineProbe",),
    "panel": ("vitmae.training.online.Panels",),
}
"""Place in the settings -> the classes that may be built there; `*` stands for any one key."""

_PLAIN = (Mapping, list, tuple, str, int, float, NoneType)
_DEEPEST, _MOST_VALUES = 20, 100_000  # a few lists that hold each other many times would take for ever to walk through


def check_classes(settings: Mapping[str, Any], file: Path, trust: Sequence[str] = ()) -> None:
    """Refuse settings of a file that would build a class that is not listed; nothing is imported or built here.

    Args:
        settings: all settings as plain values, or some parts by name: {"model": …, "backbone": …}.
        file: the file that they were read from, for the error message.
        trust: full names of further classes, which are then allowed in every place.

    Raises:
        UserError: a class is not listed for its place, or a value is not plain data.
    """
    if isinstance(trust, str) or not all(isinstance(name, str) for name in trust):
        raise UserError(f"trust={trust}: must be a list of full names of classes, trust=[package.Class]")
    check_plain(settings, file)
    if unlisted := unlisted_classes(settings, trust):
        place, target = next(iter(unlisted.items()))
        names = ",".join(dict.fromkeys([*trust, *unlisted.values()]))
        raise UserError(
            f"{file}: {place or 'its top level'} builds {target}, which is not allowed there: refused; "
            f"if you know this class and trust the file, add trust=[{names}]"
        )


def check_plain(settings: Mapping[str, Any], file: Path) -> None:
    """Refuse settings of a file that are more than plain data, whatever classes they name.

    Args:
        settings: see `check_classes`.
        file: see `check_classes`.

    Raises:
        UserError: a value is no plain value, or there are more of them than a run has.
    """
    for number, (place, key, value) in enumerate(_all_values(settings)):
        name = f"{place}.{key}" if place else key
        if number == _MOST_VALUES or place.count(".") >= _DEEPEST:
            raise UserError(f"{file} is refused: it holds more settings than a run has; get it from its source again")
        if key == "_partial_":
            raise UserError(f"{file} is refused: no run saves {name}; get the file from its source again")
        if not isinstance(value, str if key == "_target_" else _PLAIN):
            raise UserError(f"{file} is refused: {name} is a {type(value).__name__}, which is not a plain value")
        if key != "_target_" and isinstance(value, str) and "${" in value:  # OmegaConf could make a node of it later
            raise UserError(f"{file} is refused: {name}={value} is not a plain value; write the value it stands for")


def unlisted_classes(settings: Mapping[str, Any], trust: Sequence[str] = ()) -> dict[str, str]:
    """Place -> full name of the class there, for each that is neither listed nor trusted."""
    targets = ((place, value) for place, key, value in _all_values(settings) if key == "_target_")
    return {place: name for place, name in targets if not _is_listed(place, name) and name not in trust}


def _all_values(node: Any, place: str = "") -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of every value; the place is the path of the mapping or list that holds it."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in pairs:
        yield place, str(key), value
        if isinstance(value, (Mapping, list, tuple)):
            yield from _all_values(value, f"{place}.{key}" if place else str(key))


def _is_listed(place: str, name: Any) -> bool:
    parent, _, _ = place.partition(".")
    slot = "logger.*" if parent == "logger" and place.count(".") == 1 else place
    return name in LISTED.get(slot, ())
