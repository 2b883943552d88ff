"""Images in Parquet tables, in the layout of image sets on the Hugging Face hub: `image.bytes` and `label`.

    path/train-00000-of-00002.parquet, path/test.parquet, ...     splits by the files' names
    {train: ..., val: ..., test: ...}                             splits one by one: files, folders or globs

Tables of up to 2 GiB are in memory, encoded. Larger ones are copied once to the cache as an Arrow file, which all
workers and ranks map into memory, because Parquet has no random access.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vitmae.atomic import atomic_replace
from vitmae.data.cache import cache_dir, digest
from vitmae.data.sources.folder import SPLIT_NAMES, split_places
from vitmae.data.splits import EncodedImages, Paths, Splits
from vitmae.errors import UserError

log = logging.getLogger(__name__)

LARGEST_IN_MEMORY = 2 * 2**30  # bytes of encoded images

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


class ParquetImages(EncodedImages):
    """The images of some Parquet files.

    Args:
        files: one or several.
        column: of the images: bytes, or a struct with bytes.
        labels: (N,) int64.
    """

    def __init__(self, files: Sequence[Path], column: str, labels: Tensor) -> None:
        super().__init__(labels)
        self.files, self.column = files, column
        self._large = sum(file.stat().st_size for file in files) > LARGEST_IN_MEMORY
        self._bytes = self._map() if self._large else pa.chunked_array(self._batches())

    def name(self, index: int) -> str:
        """The row, counted over all files."""
        return f"row {index} of {self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    def open(self, index: int) -> BinaryIO:
        """The bytes of the row; empty if it has no image."""
        return BytesIO(self._bytes[index].as_py() or b"")

    def open_mask(self, index: int) -> BinaryIO:
        """Tables have no masks."""
        raise UserError("a Parquet table has no per-pixel classes: use data=folder with data.source.masks")

    def fingerprint(self, sample: Sequence[int]) -> str:
        """Of the files' paths, sizes and times."""
        states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return digest([os.path.abspath(file) for file in self.files], states, self.column)

    def _batches(self) -> Iterator[Any]:
        """The encoded images, batch by batch."""
        for file in self.files:
            for batch in pq.ParquetFile(file).iter_batches(columns=[self.column]):
                images = batch.column(0)
                yield (images.field("bytes") if pa.types.is_struct(images.type) else images).cast(pa.large_binary())

    def _map(self) -> Any:
        """The same, mapped from the cache; the first time it is written there."""
        path = cache_dir() / "tables" / f"{self.fingerprint(())}.arrow"
        if not path.exists():
            log.info("copying %d Parquet files to %s", len(self.files), path)
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = pa.schema([("bytes", pa.large_binary())])
            with atomic_replace(path) as part, pa.ipc.new_file(str(part), schema) as table:
                for images in self._batches():
                    table.write_batch(pa.record_batch([images], schema))
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to a worker: without the images, if the worker can map them too."""
        return self.__dict__ | {"_bytes": None if self._large else self._bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._large:
            self._bytes = self._map()


class Parquet:
    """Images in Parquet files.

    Args:
        image_column: null: image or img.
        label_column: null: label, labels or fine_label; without any of these, images have no labels.
    """

    def __init__(self, image_column: str | None = None, label_column: str | None = None) -> None:
        self.image_column, self.label_column = image_column, label_column

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Open the tables of each split.

        Raises:
            UserError: the path is missing, its files are not Parquet or lack a column, or a split has a class that
                training lacks.
        """
        places = split_places(path)
        files = {split: _find(place) for split, place in places.items()}
        if set(files) == {"train"} and not isinstance(path, Mapping):
            files = _by_name(files["train"])
        schema = _schema(files["train"][0])
        image_column = _pick(schema, self.image_column, _IMAGE_COLUMNS, "image", files["train"][0])
        if image_column is None:
            raise UserError(
                f"{files['train'][0]} has no column {' or '.join(_IMAGE_COLUMNS)} but "
                f"{', '.join(schema.names)}: set data.source.image_column"
            )
        label_column = _pick(schema, self.label_column, _LABEL_COLUMNS, "label", files["train"][0])
        classes: tuple[str, ...] | None = None
        images = {}
        for split, some in files.items():
            values = _column(some, label_column) if label_column else None
            if values is None:
                labels = torch.full((sum(pq.ParquetFile(file).metadata.num_rows for file in some),), -1)
            else:
                if classes is None:
                    classes = _class_names(schema, str(label_column), values)
                labels = _numbers(values, classes, split)
            images[split] = ParquetImages(some, image_column, labels)
        return Splits(images["train"], images.get("val"), images.get("test"), classes)


def _find(place: str | Sequence[str]) -> list[Path]:
    """The Parquet files of a file, folder, glob, or several of these."""
    if not isinstance(place, str):
        return [file for one in place for file in _find(one)]
    path = Path(place).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
    elif has_magic(place):
        files = [Path(file) for file in sorted(glob(str(path), recursive=True))]
    elif not path.exists():
        raise UserError(f"data.path={place} does not exist: point it at your Parquet files")
    else:
        files = [path]
    if not files:
        raise UserError(f"no .parquet file in {place}: point data.path at your Parquet files")
    return files


def _by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split, by the split's name in the file's name."""
    if len(files) == 1:
        return {"train": list(files)}
    shared: dict[str, list[Path]] = {}
    for file in files:
        words = re.split("[^a-z]+", file.stem.lower())
        split = next((split for split, names in SPLIT_NAMES.items() if set(names) & set(words)), "")
        shared.setdefault(split, []).append(file)
    if set(shared) == {""}:
        return {"train": shared[""]}
    if "" in shared or "train" not in shared:
        file = shared.get("", files)[0]
        raise UserError(
            f"it is not clear which split {file} is of: name it train, val or test, or set "
            "data.path={train: ..., val: ...}"
        )
    return {split: shared[split] for split in SPLIT_NAMES if split in shared}


def _schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a Parquet file ({str(error).splitlines()[0]}): check data.path") from None


def _pick(schema: Any, given: str | None, usual: Sequence[str], role: str, file: Path) -> str | None:
    """The column of a role: the given one, else the first usual one, else None."""
    if given is not None and given not in schema.names:
        raise UserError(f"{file} has no column {given} but {', '.join(schema.names)}: set data.source.{role}_column")
    return given or next((name for name in usual if name in schema.names), None)


def _column(files: Sequence[Path], name: str) -> Any:
    try:
        return pa.chunked_array([chunk for file in files for chunk in pq.read_table(file, columns=[name])[name].chunks])
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"column {name} of {files[0]}: {str(error).splitlines()[0]}") from None


def _class_names(schema: Any, column: str, values: Any) -> tuple[str, ...]:
    """The class names in the hub's part of the schema; without them, the labels themselves."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    if names:
        return tuple(names)
    distinct = values.unique().drop_null().to_pylist()
    if all(isinstance(value, int) for value in distinct):
        return tuple(str(number) for number in range(max(distinct, default=-1) + 1))
    return tuple(sorted(map(str, distinct)))


def _numbers(values: Any, classes: Sequence[str], split: str) -> Tensor:
    """Labels as class numbers: (N,) int64, -1 for an image without a label."""
    if pa.types.is_integer(values.type):
        numbers = values.fill_null(-1).to_numpy().astype(np.int64)
    else:
        known = {name: number for number, name in enumerate(classes)} | {"None": -1}
        numbers = np.array([known.get(str(value), len(classes)) for value in values.to_pylist()], np.int64)
    if numbers.max(initial=-1) >= len(classes):
        raise UserError(
            f"the {split} table has a class that is not among the {len(classes)} training classes: "
            "add training images of it, or remove it"
        )
    return torch.from_numpy(numbers)
