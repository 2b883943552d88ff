"""Images in Parquet tables, in the layout of image sets on the Hugging Face hub: `image.bytes` and `label`.

    path/train-00000-of-00002.parquet, path/test.parquet, ...     splits by the files' names
    {train: ..., val: ..., test: ...}                             splits one by one: files, folders or globs

Tables of up to 2 GiB are in memory, encoded. Larger ones are copied once to the cache as an Arrow file, which all
workers and ranks map into memory, because Parquet has no random access.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vitmae.atomic import atomic_replace
from vitmae.data.cache import cache_dir, digest
from vitmae.data.parquet_labels import class_names, class_numbers, read_labels, reading
from vitmae.data.sources.folder import SPLIT_NAMES, require_place, split_places
from vitmae.data.splits import EncodedImages, Paths, Splits
from vitmae.errors import UserError
from vitmae.files import match, open_file, user_path, walk

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
        self._bytes = self._map() if self._large else pa.chunked_array(self._batches(), pa.large_binary())

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
            with reading(file):
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
        classes: tuple[str, ...] = ()
        images = {}
        for split, some in files.items():
            count = sum(_check_table(file, image_column, label_column) for file in some)
            if not count:
                raise UserError(f"the {split} table {some[0]} has no row: give one with images")
            labels = torch.full((count,), -1)
            if label_column is not None:
                values, place = read_labels(some, label_column), f"column {label_column} of the {split} table {some[0]}"
                if split == "train":
                    classes = class_names(schema, label_column, values, place)
                labels = class_numbers(values, classes, place)
            images[split] = ParquetImages(some, image_column, labels)
        return Splits(images["train"], images.get("val"), images.get("test"), classes or None)


def _find(place: str | Sequence[str]) -> list[Path]:
    """The Parquet files of a file, folder, glob, or several of these."""
    require_place(place)
    if not isinstance(place, str):
        return [file for one in place for file in _find(one)]
    path = user_path(place)
    if path.is_dir():
        files = sorted(path / below / name for below, names in walk(path, _is_table) for name in names)
    elif has_magic(place) and not path.exists():
        files = [Path(file) for file in match(str(path), lambda name: True)]
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


def _is_table(name: str) -> bool:
    return name.lower().endswith(".parquet") and not name.startswith(".")


def _schema(file: Path) -> Any:
    with reading(file), open_file(file):  # refuses a pipe, which would never end
        return pq.read_schema(file)


def _pick(schema: Any, given: str | None, usual: Sequence[str], role: str, file: Path) -> str | None:
    """The column of a role: the given one, else the first usual one, else None."""
    if given is not None and given not in schema.names:
        raise UserError(f"{file} has no column {given} but {', '.join(schema.names)}: set data.source.{role}_column")
    return given or next((name for name in usual if name in schema.names), None)


def _check_table(file: Path, image_column: str, label_column: str | None) -> int:
    """Check the columns of a table; return the number of its rows.

    Raises:
        UserError: a column is missing or of another type, or the file is damaged.
    """
    schema = _schema(file)
    for name in filter(None, (image_column, label_column)):
        if schema.names.count(name) != 1:
            raise UserError(
                f"{file} has {schema.names.count(name)} columns {name}, but {', '.join(schema.names)}: "
                "all tables must have the same columns, each once"
            )
    kind = schema.field(image_column).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_fixed_size_binary(inner)):
        raise UserError(
            f"column {image_column} of {file} holds {kind}: must hold image files as binary or as a struct with bytes: "
            "set data.source.image_column"
        )
    with reading(file):
        return int(pq.ParquetFile(file).metadata.num_rows)
