"""Features on disk, so that a set is encoded once for all probes.

    <root>/<key>/cls.npy, avg.npy, patches.npy, labels.npy    memory-mapped when read
    <root>/<key>/about.json                                    what the key is a hash of, as text

The key is a hash of all that the features depend on: the weights, the data and the transform. So an entry is never out
of date: a changed checkpoint under an old name has another key.

A file gets its name only when it is complete, and ``about.json`` is written last: without it there is no entry. Two
processes may write the same content at once. Only plain arrays and JSON are read; nothing is unpickled.

Shapes: M images, N patches, D width.
"""

import json
import struct
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy
import torch
from torch import Tensor, nn

from vitmae.atomic import atomic_write
from vitmae.errors import UserError
from vitmae.probes.features import POOLINGS, Features

_FORMAT = 1  # part of every key; increase it when the meaning of features changes
_HEADER = 128  # bytes before the values in a .npy file


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of all parameters and buffers: 64 hex digits.

    It does not include other settings of the architecture.
    """
    digest = sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Content:
    """What features depend on. Every attribute except ``weights`` may be any JSON value.

    Attributes:
        weights: `hash_weights` of the backbone.
        data: which images in which order: a name with a version, or hashes.
        transform: of the images: size, crop, mean and std.
        model: other things that features depend on: settings of the architecture, autocast.
    """

    weights: str
    data: Any
    transform: Any
    model: Any = None

    @property
    def key(self) -> str:
        """The folder's name: 32 hex digits."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:32]


def cached(root: str | Path, content: Content, compute: Callable[[], Iterable[Features]]) -> Features:
    """Read features; if they are not stored yet, compute and write them first.

    Args:
        root: the folder of all entries; created if missing.
        content: what the features depend on.
        compute: yields the features batch by batch, as `vitmae.probes.features.extract_batches` does.

    Raises:
        UserError: the entry is damaged, or there are no images.
    """
    features = read(root, content)
    if features is None:
        write(root, content, compute())
        features = read(root, content)
        assert features is not None
    return features


def read(root: str | Path, content: Content) -> Features | None:
    """The features of this content, memory-mapped; None if they are not stored.

    Writing to the tensors does not change the files.

    Raises:
        UserError: the entry is damaged.
    """
    folder = Path(root) / content.key
    if not (folder / "about.json").exists():
        return None
    try:
        about = json.loads((folder / "about.json").read_text())
        arrays = {
            name: torch.from_numpy(numpy.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
            for name in about["arrays"]
        }
        if {len(array) for array in arrays.values()} != {about["images"]}:
            raise ValueError("the arrays differ in length")
        return Features(
            {pooling: arrays[pooling] for pooling in POOLINGS if pooling in arrays},
            arrays["labels"],
            arrays.get("patches"),
            tuple(about["grid_size"]) if about["grid_size"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the features in {folder} are damaged ({error}): delete that folder") from error


def write(root: str | Path, content: Content, batches: Iterable[Features]) -> None:
    """Write features batch by batch, in constant memory.

    Args:
        root: the folder of all entries; created if missing.
        content: what the features depend on.
        batches: parts of one set, in order, with the same poolings; float32 or float16.

    Raises:
        UserError: there are no images.
    """
    folder = Path(root) / content.key
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, IO[bytes]] = {}
    images, grid_size, arrays = 0, None, {}
    with ExitStack() as stack:
        for batch in batches:
            arrays = dict(batch.pooled) | {"labels": batch.labels}
            if batch.patches is not None:
                arrays["patches"] = batch.patches
            for name, values in arrays.items():
                if name not in files:
                    files[name] = stack.enter_context(atomic_write(folder / f"{name}.npy"))
                    files[name].write(_header(values, 0))
                files[name].write(values.contiguous().numpy().data)
            images, grid_size = images + len(batch), batch.grid_size
        if not images:
            raise UserError("there are no images to store features of: check the split and its folder")
        for name, file in files.items():
            file.seek(0)
            file.write(_header(arrays[name], images))
    about = {"images": images, "arrays": sorted(files), "grid_size": grid_size, "content": asdict(content)}
    with atomic_write(folder / "about.json") as file:
        file.write(json.dumps(about, indent=2).encode())


def _header(values: Tensor, images: int) -> bytes:
    """The header of a .npy file of version 1.0, padded to a length that does not depend on the number of images.

    So it can be written first, and again when the number of images is known.
    """
    shape = (images, *values.shape[1:])
    about = {"descr": values.numpy().dtype.str, "fortran_order": False, "shape": shape}
    text = repr(about).ljust(_HEADER - 11).encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
