"""Which classes a file may build: a checkpoint, a bundle, a run's config.yaml.

To build settings is to call what their `_target_` names, and a file may come from anybody. So each place in the
settings has a list of allowed classes, by their exact names, and everything else in a file is data. A user allows
further classes with `trust=[my_package.MyObjective]`. What a command line itself names is the user's own and is not
checked here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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


def check_classes(settings: Mapping[str, Any], file: Path, trust: Sequence[str] = ()) -> None:
    """Refuse settings of a file that would build a class that is not listed; nothing is imported or built here.

    Args:
        settings: all settings as plain values, or some parts by name: {"model": …, "backbone": …}.
        file: the file that they were read from, for the error message.
        trust: full names of further classes, which are then allowed in every place.

    Raises:
        UserError: a class is not listed for its place, or a value is not plain data.
    """
    for place, key, value in _all_values(settings):
        name = f"{place}.{key}" if place else key
        if key == "_target_":
            if not _is_listed(place, value) and value not in trust:
                names = ",".join(dict.fromkeys([*trust, *unlisted_classes(settings)]))
                raise UserError(
                    f"{file}: {place or 'its top level'} builds {value}, which is not allowed there: refused; "
                    f"if you know this class and trust the file, add trust=[{names}]"
                )
        elif key == "_partial_":
            raise UserError(f"{file} is refused: no run saves {name}; get the file from its source again")
        elif isinstance(value, str) and "${" in value:  # OmegaConf could make a node of it after this check
            raise UserError(f"{file} is refused: {name}={value} is not a plain value; write the value it stands for")


def unlisted_classes(settings: Mapping[str, Any]) -> list[str]:
    """The full names that `trust` must hold before a file with these settings can be built."""
    targets = ((place, value) for place, key, value in _all_values(settings) if key == "_target_")
    return list(dict.fromkeys(str(name) for place, name in targets if not _is_listed(place, name)))


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
