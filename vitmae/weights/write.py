"""Write a model of this project in one of these formats; read again, the tensors are the same.

    bundle         this project opens it; it holds everything
    timm           `timm.create_model` opens it
    hf             Hugging Face's library opens it
    fair           the MAE authors' code opens it
    onnx           onnxruntime runs it
    torch_export   torch runs it without this project

`full` has the decoder or head, `encoder` does not.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from vitmae.atomic import make_folder
from vitmae.errors import UserError
from vitmae.weights.formats import bundle, fair, graph, hugging_face
from vitmae.weights.formats import timm as timm_format
from vitmae.weights.saved import Saved, rebuild

Layout = Literal["bundle", "timm", "hf", "fair", "onnx", "torch_export"]
What = Literal["encoder", "full"]

_WRITERS: dict[str, Callable[[Any, Saved, str, Path], None]] = {
    "bundle": bundle.write,
    "timm": timm_format.write,
    "hf": hugging_face.write,
    "fair": fair.write,
    "onnx": graph.write_onnx,
    "torch_export": graph.write_torch_export,
}


def write_weights(saved: Saved, layout: Layout, what: What, folder: Path) -> list[Path]:
    """Export a model; a failure leaves no files.

    Args:
        saved: see `vitmae.weights.saved.read_saved`.
        layout: the format.
        what: with decoder or head, or without.
        folder: a new one, or an empty one.

    Returns:
        The files that were written.

    Raises:
        UserError: the folder exists and is not empty, or it cannot be made, or the format cannot hold the model.
    """
    if layout not in get_args(Layout) or what not in get_args(What):
        raise UserError(
            f"format={layout} what={what}: format is one of {', '.join(get_args(Layout))}, and what is encoder or full"
        )
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give another out=, or remove it")
    if what == "full" and not saved.is_full:
        raise UserError(f"{saved.path} holds an encoder alone: export what=encoder")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part, f"out={folder}")
    try:
        _WRITERS[layout](rebuild(saved), saved, what, part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.iterdir())
