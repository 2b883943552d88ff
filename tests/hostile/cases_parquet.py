"""Parquet tables of images whose columns, labels or bytes are not what a training needs."""

import datetime
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.builders import encode, picture
from tests.hostile.case import Case
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.parquet import Parquet

IMAGES = [encode(picture(number, 8, 8)) for number in range(24)]
WORDS = ("data=parquet", "data.path=set.parquet", "data.img_size=8", "logger=none", "trainer=cpu", "data.batch_size=2")


def structs(images):
    return [image and {"bytes": image, "path": None} for image in images]


def table(labels=None, images=None, names=None, kind=None, **columns):
    images = structs(IMAGES) if images is None else images
    if labels is not None:
        columns["label"] = pa.array(labels, kind)
    made = pa.table({"image": images} | columns)
    return made.replace_schema_metadata({"huggingface": names}) if names is not None else made


def hub(names):
    return json.dumps({"info": {"features": {"label": {"names": names}}}})


def write(made, path="set.parquet", **options):
    """Makes a table; `made` is called when the case runs, so that a fault in it is the case's."""

    def files(folder):
        (folder / path).parent.mkdir(exist_ok=True)
        pq.write_table(made(), folder / path, **options)

    return files


def several(**tables):
    def files(folder):
        for name, made in tables.items():
            write(made, f"set/{name}.parquet")(folder)

    return files


def damaged(change):
    def files(folder):
        write(lambda: table([0, 1] * 12))(folder)
        path = folder / "set.parquet"
        path.write_bytes(change(path.read_bytes()))

    return files


def prepared(path, on_error, **columns):
    data = ImageData(
        Parquet(**columns), path=path, img_size=8, in_chans=3, batch_size=2, num_workers=0, on_error=on_error
    )
    data.prepare()
    return data


def bad(id, files, *says, path="set.parquet", **columns):
    """A table that is refused when it is read, before a training starts."""
    return Case(
        f"python: parquet: {id}", lambda folder, run: prepared(path, "raise", **columns), files=files, says=says
    )


def untrainable(id, files, *says, more=()):
    return Case(f"train: parquet: {id}", "train", (*WORDS, *more), files, says=says)


def good(id, files, classes=None, path="set.parquet", count=24):
    """A table that is read: its classes, and how many of its images can be decoded."""

    def read(folder, run):
        data = prepared(path, "skip")
        assert data.class_names == classes
        assert data.num_train + data.num_val == count

    return Case(f"python: parquet: {id}", read, files=files, ends=0)


def labels(id, values, *says, kind=None, **options):
    return bad(f"labels that are {id}", write(lambda: table(values, kind=kind, **options)), "set.parquet", *says)


VIT = ("model=vit", "backbone=vit_pico")

CASES = [
    # -- labels
    good("labels that are true and false", write(lambda: table([True, False] * 12)), ("0", "1")),
    good("labels that are whole floats", write(lambda: table([0.0, 1.0] * 12)), ("0", "1")),
    good("labels that are categories", write(lambda: table(labels=None, label=pa.array(["a", "b"] * 12).dictionary_encode())), ("a", "b")),
    good("labels with null", write(lambda: table([0, None, 1, 1] * 6)), ("0", "1")),
    good("labels with NaN", write(lambda: table([0.0, float("nan"), 1.0, 1.0] * 6)), ("0", "1")),
    good("a class called None", write(lambda: table(["None", "b"] * 12)), ("None", "b")),
    good("names of classes from a damaged note", write(lambda: table([0, 1] * 12, names="{")), ("0", "1")),
    good("names of classes from a note of another form", write(lambda: table([0, 1] * 12, names='{"info": null}')), ("0", "1")),
    untrainable("a label of three thousand million", write(lambda: table([0, 3_000_000_000] * 12)), "set.parquet", "class 3000000000"),
    untrainable("a cut table", damaged(lambda data: data[: len(data) // 2]), "set.parquet is not a Parquet file"),
    labels("three thousand million", [0, 3_000_000_000] * 12, "class 3000000000", "must be < 1,000,000"),
    labels("larger than any number of classes", [0, 2**63 - 1] * 12, "must be < 1,000,000"),
    labels("larger than int64", [0, 2**64 - 1] * 12, "no class", "must be whole", kind=pa.uint64()),
    labels("negative", [0, -5] * 12, "class -5", "must be ≥ 0"),
    labels("fractions", [0.5, 1.0] * 12, "no class", "must be whole", "label_column"),
    labels("infinite", [0.0, float("inf")] * 12, "no class", "must be whole"),
    labels("lists", [[0], [1, 2]] * 12, "list", "label_column"),
    labels("mappings", [{"id": 0}, {"id": 1}] * 12, "struct", "label_column"),
    labels("dates", [datetime.date(2020, 1, 1)] * 24, "date32", "label_column"),
    labels("bytes", [b"a", b"b"] * 12, "binary", "label_column"),
    labels("more than the names of the classes", [0, 1, 5] * 8, "not among the 2 training classes", names=hub(["a", "b"])),
    labels("words without a name", ["a", "c"] * 12, "not among the 2 training classes", names=hub(["a", "b"])),
    untrainable("labels that are all null for a classifier", write(lambda: table([None] * 24)), "needs labels", more=VIT),
    untrainable("some labels are missing for a classifier", write(lambda: table([0, None, 1, 1] * 6)), "no label", "model=mae", more=VIT),
    untrainable("no labels for a classifier", write(table), "needs labels", more=VIT),
    bad("a column of labels that is not there", write(lambda: table([0, 1] * 12)), "no column kind", "label_column", label_column="kind"),
    bad("an empty name of a column", write(lambda: table([0, 1] * 12)), "no column", "label_column", label_column=""),
    # -- images
    bad("no column of images", write(lambda: pa.table({"picture": IMAGES})), "no column image or img", "picture", "image_column"),
    bad("a column of images that is not there", write(table), "no column photo", image_column="photo"),
    bad("images that are texts", write(lambda: table(images=["a.jpg"] * 24)), "column image", "string", "binary"),
    bad("images that are numbers", write(lambda: table(images=[1] * 24)), "column image", "int64", "binary"),
    bad("images that are lists of numbers", write(lambda: table(images=[[1, 2]] * 24)), "column image", "list", "binary"),
    bad("images that are null", write(lambda: table(images=[None] * 24)), "column image", "null", "binary"),
    bad("images in a struct without bytes", write(lambda: table(images=[{"path": "a.jpg"}] * 24)), "column image", "struct", "binary"),
    bad("bytes that are texts", write(lambda: table(images=[{"bytes": "a"}] * 24)), "column image", "binary"),
    bad("rows without an image", write(lambda: table(images=structs([*IMAGES[:-1], None]))), "row 23", "the file is empty", "on_error=skip"),
    bad("a row without a struct", write(lambda: table(images=[*structs(IMAGES[:-1]), None])), "row 23", "on_error=skip"),
    bad("rows that are no images", write(lambda: table(images=structs([*IMAGES[:-1], b"text"]))), "row 23", "cannot identify", "on_error=skip"),
    bad("two columns of one name", write(lambda: pa.Table.from_arrays([pa.array(IMAGES)] * 2, names=["image", "image"])), "2 columns image"),
    good("images as plain bytes", write(lambda: table(images=IMAGES))),
    good("images of large bytes", write(lambda: table(images=pa.array(IMAGES, pa.large_binary())))),
    good("a row without an image, skipped", write(lambda: table([0, 1] * 12, images=structs([*IMAGES[:-1], None]))), ("0", "1"), count=23),
    good("tiny row groups", write(lambda: table([0, 1] * 12), row_group_size=1), ("0", "1")),
    # -- files
    bad("no rows", write(lambda: table([0, 1] * 12).slice(0, 0)), "has no row"),
    bad("no columns", write(lambda: pa.table({})), "no column image or img"),
    bad("an empty file", lambda folder: (folder / "set.parquet").touch(), "set.parquet is not a Parquet file"),
    bad("a text", lambda folder: (folder / "set.parquet").write_text("a,b\n1,2\n"), "set.parquet is not a Parquet file"),
    bad("a table that is cut", damaged(lambda data: data[: len(data) // 2]), "set.parquet is not a Parquet file, or is damaged"),
    bad("a table without its start", damaged(lambda data: data[100:]), "set.parquet"),
    bad("a table with a zeroed middle", damaged(lambda data: data[:400] + bytes(len(data) - 2000) + data[-1600:]), "set.parquet"),
    bad("a table with a zeroed end", damaged(lambda data: data[:-300] + bytes(290) + data[-10:]), "set.parquet"),
    bad("a pipe", lambda folder: os.mkfifo(folder / "set.parquet"), "pipe or a device"),
    bad("a pipe in a folder", lambda folder: (several(a=table)(folder), os.mkfifo(folder / "set" / "b.parquet")), "b.parquet", "named pipe", path="set"),
    bad("nothing there", None, "set.parquet does not exist"),
    bad("a folder without tables", lambda folder: (folder / "set").mkdir(), "no .parquet file in set", path="set"),
    bad("a glob that matches nothing", None, "no .parquet file in", path="set/*.parquet"),
    bad("a glob that matches other files", None, "photos/a/000.png is not a Parquet file", path="photos/a/*"),
    bad("tables of which one has no images", several(a=lambda: table([0, 1] * 12), b=lambda: pa.table({"label": [0, 1]})), "b.parquet has 0 columns image", path="set"),
    bad("tables of which one has no labels", several(a=lambda: table([0, 1] * 12), b=table), "b.parquet has 0 columns label", path="set"),
    bad("tables of which one has other images", several(a=table, b=lambda: table(images=["x"] * 24)), "b.parquet holds string", path="set"),
    bad("tables with labels of two kinds", several(a=lambda: table([0, 1] * 12), b=lambda: table(["a", "b"] * 12)), "b.parquet holds string", "same kind", path="set"),
    bad("tables of which one is cut", lambda folder: (several(a=table)(folder), (folder / "set" / "b.parquet").write_bytes(b"PAR1")), "b.parquet", path="set"),
    bad("splits that cannot be told", several(train=table, other=table), "which split", path="set"),
    bad("a class that training lacks", several(train=lambda: table([0, 1] * 12), test=lambda: table([0, 2] * 12)), "test.parquet", "not among", path="set"),
    bad("an empty table to validate on", several(train=lambda: table([0, 1] * 12), val=lambda: table([0, 1] * 12).slice(0, 0)), "val table", "no row", path="set"),
    good("tables with labels of two sizes", several(a=lambda: table([0, 1] * 12), b=lambda: table([0, 1] * 12, kind=pa.int8())), ("0", "1"), "set", 48),
    good("tables of which one is empty", several(a=lambda: table([0, 1] * 12), b=lambda: table([0, 1] * 12).slice(0, 0)), ("0", "1"), "set"),
    good("a circle of links", lambda folder: (several(a=lambda: table([0, 1] * 12))(folder), (folder / "set" / "x").symlink_to(".")), ("0", "1"), "set"),
    good("names of other systems", lambda folder: (several(a=lambda: table([0, 1] * 12))(folder), (folder / "set" / "._a.parquet").touch()), ("0", "1"), "set"),
]  # fmt: skip
