"""Files from anywhere -> tensors and plain values. Only tensors and plain types are ever unpickled.

The first bytes of a file tell its format, not its name.
"""

import argparse
import json
import re
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import safe_globals

from vitmae.errors import UserError, first_line

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".tar", ".safetensors", ".npz")
"""The usual endings of files of weights: a text with such an ending is a path."""


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of weights: safetensors, npz, or what torch.save wrote.

    Raises:
        UserError: the file does not exist, is damaged, or holds pickled objects other than tensors and plain types.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return dict(_read_safetensors(path))
        if start.startswith(b"PK") and _is_npz(path):
            return dict(_read_npz(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, BadZipFile) as error:
        raise _damaged(path, error) from error
    return _read_torch(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: the file does not exist, is damaged, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # SafetensorError derives from Exception directly
        raise _damaged(path, error) from error


def _is_npz(path: Path) -> bool:
    with ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} is refused: it holds pickled objects, which may run code") from error
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # checkpoints of the published MAE code hold their arguments as a Namespace: values only, no code
        with safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch.save did not write; they are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are not a pickle raise a dozen kinds of errors
        if unsafe := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} is refused: it holds pickled code or objects ({unsafe[1]}), not only tensors; "
                "save its state_dict alone, or as safetensors"
            ) from error
        if "weights_only" in str(error):
            raise UserError(
                f"{path} is refused: it is damaged, or a pickle that torch.save did not write; "
                "get it again, or as safetensors"
            ) from error
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights: it must be a state_dict, and is a {type(content).__name__}")
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or not a file of weights ({first_line(error)}): get it again")
