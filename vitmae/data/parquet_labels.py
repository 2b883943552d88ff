"""The column of labels in Parquet tables: whole numbers, true or false, or texts -> class numbers and class names."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.files import reason_of

MOST_CLASSES = 1_000_000
_REMEDY = "set data.source.label_column, or write the table again"


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what Arrow raises while a file is read into an error that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = reason_of(error)[:200]
        raise UserError(f"{file} is not a Parquet file, or is damaged ({reason}): check data.path") from None


def read_labels(files: Sequence[Path], column: str) -> Any:
    """The labels of some tables in one array, whole numbers (int64) or texts; null where a row has none.

    true and false become 1 and 0; whole numbers that are stored as floats become whole, and NaN becomes null.

    Raises:
        UserError: the column has another type, or not the same in all tables.
    """
    chunks: list[Any] = []
    for file in files:
        place = f"column {column} of {file}"
        with reading(file):
            values = pq.ParquetFile(file).read(columns=[column])[column]
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.cast(kind.value_type), kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            values = values.cast(pa.large_string())
        elif _is_number(kind):
            if pa.types.is_floating(kind):
                values = pc.if_else(pc.is_nan(values), None, values)
            try:
                values = values.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{place} holds a number that is no class ({reason_of(error)}): "
                    f"must be whole and < {MOST_CLASSES:,}; {_REMEDY}"
                ) from None
        else:
            raise UserError(f"{place} holds {kind}: a class is a whole number, true or false, or a text; {_REMEDY}")
        if chunks and pa.types.is_integer(chunks[0].type) != pa.types.is_integer(values.type):
            raise UserError(f"{place} holds {kind}, unlike {files[0]}: all tables must have labels of the same kind")
        chunks += values.chunks
    return pa.chunked_array(chunks)


def _is_number(kind: Any) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)


def class_names(schema: Any, column: str, values: Any, place: str) -> tuple[str, ...]:
    """The class names in the hub's part of the schema; without them, the labels themselves."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):  # not from the hub, or a label without names
        names = None
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    distinct = values.unique().drop_null().to_pylist()
    if pa.types.is_integer(values.type):
        largest = max(distinct, default=-1)
        if largest >= MOST_CLASSES:
            raise UserError(f"{place} has the class {largest}: must be < {MOST_CLASSES:,}; number them from 0")
        return tuple(str(number) for number in range(largest + 1))
    return tuple(sorted(distinct))


def class_numbers(values: Any, classes: Sequence[str], place: str) -> Tensor:
    """Labels as class numbers: (N,) int64, -1 for an image without a label."""
    if pa.types.is_integer(values.type):
        numbers = values.fill_null(-1).to_numpy().astype(np.int64)
    else:
        known: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
        known[None] = -1
        numbers = np.array([known.get(value, len(classes)) for value in values.to_pylist()], np.int64)
    if numbers.min() < -1:
        raise UserError(
            f"{place} has the class {numbers.min()}: must be ≥ 0, or -1 or null for an image without a label"
        )
    if numbers.max() >= len(classes):
        raise UserError(
            f"{place} has a class that is not among the {len(classes)} training classes: "
            "add training images of it, or remove it"
        )
    return torch.from_numpy(numbers)
