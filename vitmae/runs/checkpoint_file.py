"""The checkpoint on disk: its contents, its format number, and the function that reads it.

    Lightning's entries      state_dict, optimizer_states, loops, …
    vitmae_format            the number of the format
    vitmae_config            the settings of the run, as plain values
    vitmae_facts             class names, origin of the first weights, …

A bundle (`vitmae.weights.formats.bundle`) carries the same number and the same settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitmae.errors import UserError

FORMAT = 1
"""Of checkpoints and bundles; increase it when older versions cannot read new files."""

_MOVED = {
    "vitmae.training.optim.Recipe": "vitmae.recipe.Recipe",
    "vitmae.data.cifar.CIFAR": "vitmae.data.sources.cifar.CIFAR",
    "vitmae.data.digits.Digits": "vitmae.data.sources.digits.Digits",
    "vitmae.data.folder.Folder": "vitmae.data.sources.folder.Folder",
    "vitmae.data.parquet.Parquet": "vitmae.data.sources.parquet.Parquet",
    "vitmae.data.shapes.Shapes": "vitmae.data.sources.shapes.Shapes",
}
"""Classes that have moved: the name in older checkpoints, and the present name."""

_THEN: dict[Any, dict[str, Any]] = {"vitmae.models.supervised.Supervised": {"map_norm_eps": 1e-5}}
"""Settings of a class that older files lack, and the value that they had then."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; only tensors and plain types are unpickled.

    Raises:
        UserError: the file is missing, damaged, not of this project, or of a newer format, or it holds NaN.
    """
    from vitmae.tensor_files import read_file, refuse_nonfinite  # torch, which commands that only list runs do not need

    content = read_file(path)
    if not is_checkpoint(content):
        raise UserError(f"{path} is not a checkpoint of this project")
    refuse_newer(content.get("vitmae_format", 1), path)
    refuse_nonfinite(content, path)
    return content


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is that of a checkpoint of this project."""
    return "vitmae_format" in content or "vitmae_config" in content


def refuse_newer(written: Any, path: Path) -> None:
    """Refuse a file whose format this version does not know.

    Args:
        written: the number in the file.
        path: of the file, for the message.

    Raises:
        UserError: the number is larger than `FORMAT`, or is not an integer.
    """
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{path} was written by a newer vitmae: update this one")


def present_names(settings: Any) -> Any:
    """Saved settings, with the present names of classes that have moved, and with settings that came later."""
    if isinstance(settings, Mapping):
        named = {
            key: _MOVED.get(value, value) if key == "_target_" else present_names(value)
            for key, value in settings.items()
        }
        return {**_THEN.get(named.get("_target_"), {}), **named}
    return [present_names(value) for value in settings] if isinstance(settings, list) else settings
