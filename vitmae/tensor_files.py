"""Files from anywhere -> tensors and plain values. Only tensors and plain types are ever unpickled.

The first bytes of a file tell its format, not its name. What torch and this project write has checksums, which are
compared before anything is used:

    torch.save    a zip file with a CRC-32 of each of its records
    safetensors   `sha256` in its metadata, if `write_safetensors` wrote it
"""

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import safe_globals

from vitmae.errors import UserError, first_line
from vitmae.plain_files import require_file

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".tar", ".safetensors", ".npz")
"""The usual endings of files of weights: a text with such an ending is a path."""

_CHUNK = 2**22  # bytes that are read at once to compute a checksum
_MOST_UNPACKED = 2**30  # bytes that a small .npz may unpack to
_DEEPEST = 20  # mappings and lists inside each other


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of weights: safetensors, npz, or what torch.save wrote.

    Raises:
        UserError: the file does not exist, is damaged, or holds pickled objects other than tensors and plain types.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return _read_safetensors(path)
        if start.startswith(b"PK"):
            return _read_npz(path) if _is_npz(path) else _read_torch(path, has_checksums=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (OSError, BadZipFile) as error:
        raise _damaged(path, error) from error
    return _read_torch(path, has_checksums=False)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, with their SHA-256 in the metadata; `read_file` compares it.

    Args:
        tensors: by name.
        path: of the file.
    """
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(dense, path, metadata={"format": "pt", "sha256": _hash(dense)})


def tensors_in(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every tensor in mappings and lists inside each other; the name is the path to it.

    Args:
        content: of a file.
        path: of the file, for the message.

    Raises:
        UserError: the mappings and lists are too deep.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()  # a file may hold one list in many places, or inside itself
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            yield "/".join(place), value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            if len(place) > _DEEPEST:
                raise UserError(f"{path} is refused: its values are more than {_DEEPEST} levels deep; get it again")
            seen.add(id(value))
            pairs = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            waiting += [((*place, str(key)), inner) for key, inner in reversed(pairs)]


def refuse_nonfinite(content: Any, path: Path | str) -> None:
    """Refuse weights that hold NaN or infinity: all that is computed from them would be NaN.

    Args:
        content: tensors in mappings and lists.
        path: of their file, for the message.

    Raises:
        UserError: names the first such tensor.
    """
    for name, tensor in tensors_in(content, Path(path)):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # 8-bit types have no isfinite
        if not bool(values.isfinite().all()):
            raise UserError(
                f"{path} holds NaN or infinity in {name}: its training has diverged; take an earlier checkpoint"
            )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            written = (file.metadata() or {}).get("sha256")
    except Exception as error:  # SafetensorError derives from Exception directly
        raise _damaged(path, error) from error
    if written is not None and written != _hash(tensors):
        raise UserError(f"{path} is damaged: its tensors do not have the SHA-256 that it states; get it again")
    return tensors


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_npz(path: Path) -> bool:
    with ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _read_npz(path: Path) -> dict[str, Any]:
    with ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > max(_MOST_UNPACKED, 20 * path.stat().st_size):
        raise UserError(f"{path} is refused: it unpacks to {unpacked} bytes, more than 20 times its size")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # a damaged header of an array raises half a dozen kinds of errors
        if "allow_pickle" in str(error):
            raise UserError(f"{path} is refused: it holds pickled objects, which may run code") from error
        raise _damaged(path, error) from error


def _read_torch(path: Path, has_checksums: bool) -> dict[str, Any]:
    if has_checksums:
        _compare_checksums(path)
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
    _refuse_strange(content, path)
    return content


def _refuse_strange(content: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are not what they cost in the file: a view can repeat one value 10^12 times."""
    size = path.stat().st_size
    for name, tensor in tensors_in(content, path):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(f"{path} is refused: {name} is not a dense tensor; save it as one")
        if tensor.numel() * tensor.itemsize > size:
            raise UserError(f"{path} is refused: its tensor {name} is larger than the file; save it with .contiguous()")


def _compare_checksums(path: Path) -> None:
    """Compare the CRC-32 of every record of a zip file with its content, which torch does not do.

    Raises:
        UserError: a record has another content than the one that was written; or it is compressed, which torch.save
            never does: a small file could fill the memory.
    """
    try:
        with ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != ZIP_STORED:
                    raise UserError(f"{path} is refused: {record.filename} is compressed; save it with torch.save")
                with archive.open(record) as content:
                    while content.read(_CHUNK):
                        pass
    except UserError:
        raise
    except Exception as error:  # a damaged directory of a zip file raises half a dozen kinds of errors
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or not a file of weights ({first_line(error)}): get it again")
