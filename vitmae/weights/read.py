"""Read weights of any format: a path or a name -> tensors under this project's names.

    a path   this project's checkpoint, run directory or bundle; FAIR's and timm's files; Google's .npz; a folder of
             Hugging Face's or timm's
    a name   timm's (`vit_base_patch16_224.mae`), or a repository on the Hugging Face hub (`facebook/vit-mae-base`)

A path wins over a name.
"""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import timm

from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.tensor_files import SUFFIXES, read_file, refuse_nonfinite
from vitmae.weights.formats import fair, google, hugging_face
from vitmae.weights.formats import timm as timm_format
from vitmae.weights.saved import as_weights, find_saved, from_checkpoint, read_saved
from vitmae.weights.translation import Weights, unreadable


def read_weights(source: str, trust: Sequence[str] = ()) -> Weights:
    """Read weights and translate their names; only tensors and plain types are unpickled.

    Args:
        source: a path, a timm name or a hub repository, see above.
        trust: further classes that this project's own files may build, see `vitmae.classes`.

    Raises:
        UserError: it does not exist, cannot be downloaded, is damaged or unsafe, or holds NaN or no vision transformer.
    """
    if not os.path.exists(user_path(source)) and timm.is_model(source.removeprefix("timm/")):
        return timm_format.download(source)
    path = local(source)
    weights = _read_folder(path, source, trust) if path.is_dir() else _read_file(path, source, trust)
    refuse_nonfinite({weights.names[name]: tensor for name, tensor in weights.state.items()}, source)
    return weights


def local(source: str) -> Path:
    """The file or folder that a path or the name of a hub repository stands for; a repository is downloaded.

    Raises:
        UserError: there is no such path, or the repository cannot be downloaded.
    """
    path = user_path(source)
    if os.path.exists(path):
        return path
    name = source.removeprefix("hf-hub:")
    parent_exists = "/" in source and os.path.isdir(path.parent)  # runs/nope, where there is runs/
    is_path = source.startswith(("/", "./", "../", "~")) or source.endswith(SUFFIXES) or parent_exists
    if not is_path and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return hugging_face.download(name)
    near = [] if is_path else get_close_matches(source, timm.list_models(), 1)
    kinds = "file or folder" if is_path else "file, folder, timm name or hub repository"
    raise UserError(f"{source}: there is no such {kinds}" + (f": did you mean {near[0]}?" if near else ""))


def _read_file(path: Path, name: str, trust: Sequence[str]) -> Weights:
    content = read_file(path)
    saved = from_checkpoint(content, path, trust)
    if saved is not None:
        return as_weights(saved, name)
    weights = fair.read(content, name) or google.read(content, name) or timm_format.read(content, name)
    if weights is None:
        raise unreadable(name, f"none of its {len(content)} entries is the patch embedding of timm, FAIR or Google")
    return weights


def _read_folder(folder: Path, name: str, trust: Sequence[str]) -> Weights:
    if find_saved(folder) is not None:
        return as_weights(read_saved(folder, trust), name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no weights: must be a run directory, a bundle, or a folder with config.json")
    return timm_format.read_folder(folder, name) or hugging_face.read_folder(folder, name)
