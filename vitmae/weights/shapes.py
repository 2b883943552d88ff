"""Whether settings are those of some weights, found out on a model without memory (torch's meta device).

Settings may come from anybody: an image of 10^9 pixels or a million blocks would fill the memory, or never end.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitmae.classes import unlisted_classes
from vitmae.config import build
from vitmae.errors import UserError, first_line

_DEPTHS = (("backbone", "depth"), ("model", "decoder_depth"))  # numbers of blocks, which take time even without memory
_BLOCK_BYTES = 1000  # a transformer block has at least this in a file: the names of its tensors alone have


def check_shapes(state: Mapping[str, Tensor], settings: Mapping[str, Any], make: Callable[[], nn.Module]) -> None:
    """Refuse settings of another model than that of the weights.

    Args:
        state: the weights by name.
        settings: their model's.
        make: builds the model of the settings.

    Raises:
        UserError: a shape differs, or the settings are those of no model.
    """
    for part, key in _DEPTHS:
        if (settings[part].get(key) or 0) > len(state):
            raise UserError(f"{part}.{key}={settings[part][key]} is more than its {len(state)} tensors: get it again")
    built = _shapes_of(make)
    for name, tensor in state.items():
        if built.get(name, tensor.shape) != tensor.shape:
            raise UserError(
                f"its weights are not those of its settings ({name} is {tuple(tensor.shape)}, and by the settings "
                f"{tuple(built[name])}): get it again"
            )


def check_memory(settings: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to resume with settings of a model that the checkpoint cannot hold.

    Args:
        settings: of the run to resume.
        checkpoint: its file.

    Raises:
        UserError: the model has more parameters than the file has bytes, or the settings are those of no model.
    """
    nodes = {part: settings[part] for part in ("model", "backbone")}
    if unlisted_classes(nodes):
        return  # an own class need not build without memory
    size = checkpoint.stat().st_size
    for part, key in _DEPTHS:
        if (nodes[part].get(key) or 0) > size // _BLOCK_BYTES:
            raise UserError(f"{checkpoint} cannot hold {part}.{key}={nodes[part][key]} blocks: leave this setting out")
    channels = [0.5] * settings["backbone"]["in_chans"]
    model = dict(nodes["model"])
    if "num_classes" in model and model["num_classes"] is None:
        model["num_classes"] = 1
    built = _shapes_of(lambda: build(model, backbone=build(nodes["backbone"]), mean=channels, std=channels))
    parameters = sum(shape.numel() for shape in built.values())
    if parameters > size:
        raise UserError(
            f"{checkpoint} cannot hold the {parameters / 1e6:.3g} M parameters of these settings: leave out what "
            "changes the model, or get the file again"
        )


def _shapes_of(make: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in make().state_dict().items()}
    except (ArithmeticError, AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"its settings are those of no model ({first_line(error)}): get it again") from error
