"""A folder's images -> a table of vectors on disk, in constant memory; the same call resumes a killed run.

    out.parquet.parts/00000.parquet, ...   finished chunks of images
    out.parquet.parts/about.json           what the chunks depend on: images, model, precision, …
    out.parquet                            all chunks, one row group each, once the last is finished; its metadata
                                           says what it depends on

A chunk begins at the same image in every run and no batch crosses its end, so a resumed run writes the same bytes as
an uninterrupted one.

Shapes: B images of a batch, D width.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitmae.atomic import atomic_replace, atomic_write, make_folder, remove_parts
from vitmae.errors import UserError
from vitmae.files import open_file
from vitmae.probes.feature_cache import hash_weights
from vitmae.trained.images import FolderImages
from vitmae.trained.model import Model, Pooling

_CHUNK = 1024  # images, rounded to whole batches; a resumed run computes at most one chunk again
_ABOUT = b"vitmae"  # the key in the table's metadata
_SAMPLE = 1000  # number of files whose size and time are compared to see whether a folder has changed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedFolder:
    """The result of `embed_folder`.

    Attributes:
        count: number of images in the table.
        width: D.
        unreadable: one line for each file that this run left out.
        resumed: number of images that an earlier run had embedded.
    """

    count: int
    width: int
    unreadable: list[str]
    resumed: int


def embed_folder(
    model: Model,
    folder: FolderImages,
    out: Path,
    *,
    pooling: Pooling | None,
    batch_size: int,
    num_workers: int | Literal["auto"],
) -> EmbeddedFolder:
    """Write a table with `path` and `vector` of every image.

    Args:
        model: see `vitmae.load`.
        folder: the images, with the model's preprocessing.
        out: the table, a Parquet file.
        pooling: see `Model.encode`.
        batch_size: images per batch.
        num_workers: see `FolderImages.batches`.

    Raises:
        UserError: the table exists already, or its chunks do, and depends on other images, another model, precision or
            batch size; it cannot be written; an image cannot be read.
    """
    parts = out.with_name(f"{out.name}.parts")
    about = _about(model, folder, pooling, batch_size)
    if os.path.lexists(out):
        done_before = _finished(out, about)
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed after its last write
        return done_before
    _begin(parts, about)
    chunk = batch_size * max(1, _CHUNK // batch_size)
    starts = range(0, len(folder), chunk)
    done = 0
    while done < len(starts) and _chunk_file(parts, done).exists():
        done += 1
    resumed = min(done * chunk, len(folder))
    if resumed:
        _log.info("resumed after %d of %d images", resumed, len(folder))
    paths: list[str] = []
    vectors: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    unreadable: list[str] = []
    read = resumed
    for batch in folder.batches(batch_size, num_workers, first=resumed):
        if batch.numbers:
            encoded = model.encode_batch(batch.images, pooling).numpy()  # (B, D)
            if not np.isfinite(encoded).all():
                raise UserError(
                    f"{model.saved.path} gives vectors with NaN or infinite values, first in the batch of "
                    f"{folder.name(batch.numbers[0])}: set precision=32-true, or take an earlier checkpoint"
                )
            vectors.append(encoded)
        paths += [folder.path(number) for number in batch.numbers]
        unreadable += batch.unreadable
        read += len(batch.numbers) + len(batch.unreadable)
        if read % chunk == 0 or read == len(folder):
            with atomic_write(_chunk_file(parts, done)) as file:
                pq.write_table(_table(paths, vectors, about), file)
            paths, vectors, done = [], [], done + 1
            _log.info("%d of %d images", read, len(folder))
    count, width = _join(parts, len(starts), out)
    shutil.rmtree(parts)
    return EmbeddedFolder(count, width, unreadable, resumed)


def _about(model: Model, folder: FolderImages, pooling: Pooling | None, batch_size: int) -> dict[str, Any]:
    """All that a table depends on, as plain values."""
    sample = np.linspace(0, len(folder) - 1, min(len(folder), _SAMPLE)).astype(int).tolist()
    return {
        "images": folder.files.fingerprint(sample),
        "model": hash_weights(model.objective),
        "precision": model.precision,
        "crop_pct": folder.preprocess.crop_pct,
        "pooling": pooling,
        "batch_size": batch_size,
        "skip_unreadable": folder.skip_unreadable,
    }


def _finished(out: Path, about: dict[str, Any]) -> EmbeddedFolder:
    """The result of an earlier run that wrote the same table.

    Raises:
        UserError: the file is another table, or none.
    """
    before = None
    try:
        with open_file(out) as file:
            table = pq.ParquetFile(file)
            before = json.loads((table.schema_arrow.metadata or {})[_ABOUT])
            count, width = table.metadata.num_rows, table.schema_arrow.field("vector").type.list_size
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError):
        pass  # not a table of this command
    if before != json.loads(json.dumps(about)):
        raise UserError(f"out={out} is there already: remove it, or choose another name")
    _log.info("%s is complete already", out)
    return EmbeddedFolder(count, width, [], count)


def _begin(parts: Path, about: dict[str, Any]) -> None:
    """Make the folder of chunks, or check that an existing one depends on the same things."""
    file = parts / "about.json"
    make_folder(parts, f"out={parts.with_suffix('')}")
    if file.exists():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"{file} is damaged: remove {parts}") from error
        other = [name for name, value in about.items() if before.get(name) != value]
        if other:
            raise UserError(f"{parts} was begun with another {other[0]}: remove it, or choose another out=")
    else:
        with atomic_write(file) as handle:
            handle.write(json.dumps(about, indent=2).encode())
    remove_parts(parts)


def _chunk_file(parts: Path, number: int) -> Path:
    return parts / f"{number:05d}.parquet"


def _table(paths: list[str], vectors: list[np.ndarray[Any, np.dtype[np.float32]]], about: dict[str, Any]) -> pa.Table:
    values = np.concatenate(vectors) if vectors else np.empty((0, 1), np.float32)
    flat = pa.array(values.reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table({"path": pa.array(paths, pa.string()), "vector": lists})
    return table.replace_schema_metadata({_ABOUT: json.dumps(about)})


def _read_chunk(part: Path) -> pa.Table:
    try:
        table = pq.read_table(part)
        if table.schema.names == ["path", "vector"]:
            return table
    except (pa.ArrowException, OSError):
        pass
    raise UserError(f"{part} is damaged: remove it, and run again")


def _join(parts: Path, number: int, out: Path) -> tuple[int, int]:
    """Copy the chunks into one file, one at a time; return the number of vectors and their width."""
    tables = (_read_chunk(_chunk_file(parts, part)) for part in range(number))
    writer, count, width = None, 0, 0
    with atomic_replace(out) as file:
        for part, table in enumerate(tables):
            if not len(table):
                continue  # none of its images could be read
            if writer is not None and table.schema != writer.schema:
                raise UserError(f"{_chunk_file(parts, part)} is damaged: remove it, and run again")
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            count, width = count + len(table), table.schema.field("vector").type.list_size
        if writer is None:
            raise UserError("none of the images can be read: see the warnings above")
        writer.close()
    return count, width
