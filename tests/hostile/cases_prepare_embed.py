"""Where a copy, a table or a reconstruction is written, what an earlier run left there, and masks of a user's own."""

import json
import os

import numpy as np
import torch
from PIL import Image

import vitmae
from tests.hostile.case import Case

PREPARE = ("src=photos", "dst=copy", "short_side=4", "num_workers=1")
EMBED = ("ckpt={run}", "images=photos", "num_workers=0")
RECONSTRUCT = (*EMBED, "panels=0")
TABLE, COPY = ("features.parquet",), ("copy",)


def made(path, content=b""):
    def files(folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    return files


def linked(name, target):
    return lambda folder: (folder / name).symlink_to(target)


def begun(**other):
    """What an embedding leaves that was killed, with other settings."""
    return made("features.parquet.parts/about.json", json.dumps({"images": "x", **other}).encode())


def prepare(id, words, files, *says):
    return Case(f"prepare: {id}", "prepare", words, files, says=says)


def copies(id, words, files, *says):
    return Case(f"prepare: {id}", "prepare", words, files, ends=0, says=says, writes=COPY)


def to(dst, src="photos"):
    return (f"src={src}", f"dst={dst}", "short_side=4", "num_workers=1")


def embed(id, words, files, *says, writes=()):
    return Case(f"embed: {id}", "embed", (*EMBED, *words), files, says=says, writes=writes)


def reconstruct(id, words, files, *says):
    return Case(f"reconstruct: {id}", "reconstruct", (*RECONSTRUCT, *words), files, says=says)


def masked(id, mask, *says, images=1, ends=2):
    def call(folder, run):
        model = vitmae.load(run, device="cpu")
        photos = [np.zeros((8, 8), np.uint8)] * images
        return model.reconstruct(photos, mask=mask(model) if callable(mask) else mask)

    return Case(f"python: a mask that is {id}", call, ends=ends, says=says)


def own(change):
    """A mask of the model's patches, the first one hidden."""

    def mask(model):
        hidden = np.zeros(model.grid_size, bool)
        hidden[0, 0] = True
        return change(hidden)

    return mask


CASES = [
    # -- prepare
    prepare("dst is empty", to(""), None, "dst=: must be a text that is not empty"),
    prepare("src is empty", to("copy", ""), None, "src=: must be a text that is not empty"),
    prepare("src is missing", to("copy", "nowhere"), None, "src=nowhere is not a folder"),
    prepare("src is a file", to("copy", "photos/a/000.png"), None, "is not a folder"),
    prepare("src is a pipe", to("copy", "pipe"), lambda folder: os.mkfifo(folder / "pipe"), "src=pipe is not a folder"),
    prepare("src is a link to itself", to("copy", "self"), linked("self", "self"), "src=self is not a folder"),
    prepare("src is a glob", to("copy", "'photos/*'"), None, "is not a folder"),
    prepare("src is the home of nobody", to("copy", "'~nobody-of-that-name'"), None, "is not a folder"),
    prepare("dst is src", to("photos"), None, "must not contain each other"),
    prepare("dst is src with another spelling", to("./photos/../photos/"), None, "must not contain each other"),
    prepare("dst is in src", to("photos/small"), None, "must not contain each other"),
    prepare("dst contains src", to("."), None, "must not contain each other"),
    prepare("dst is a link to src", to("link"), linked("link", "photos"), "must not contain each other"),
    prepare("dst is in a link to src", to("link/small"), linked("link", "photos"), "must not contain each other"),
    prepare("dst is a file", to("note"), made("note"), "dst=note cannot be written", "another place"),
    prepare("dst is below a file", to("note/copy"), made("note"), "dst=note/copy cannot be written"),
    prepare("dst is a link to itself", to("self"), linked("self", "self"), "dst=self cannot be written"),
    prepare("dst is a pipe", to("pipe"), lambda folder: os.mkfifo(folder / "pipe"), "dst=pipe cannot be written"),
    prepare("dst is too long", to("n" * 300), None, "cannot be written", "too long"),
    prepare("dst cannot be made", to("/proc/copy"), None, "dst=/proc/copy cannot be written"),
    prepare("dst holds other files", to("copy"), made("copy/mine.txt"), "dst=copy holds other files"),
    prepare("dst was made from another folder", to("copy"), made("copy/prepared.json", b'{"src": "/x"}'), "prepared with src=/x"),
    *(
        prepare(f"the note of a copy {what}", to("copy"), made("copy/prepared.json", content), "prepared.json is damaged", "remove it")
        for what, content in (("is empty", b""), ("is cut", b'{"src": '), ("is a list", b"[1, 2]"), ("is a number", b"5"), ("is no text", b"\xff\xfe\0"))
    ),
    copies("a slash at the end", to("copy/", "photos/"), None, "4 shrunk"),
    copies("a circle of links", PREPARE, linked("photos/circle", "."), "4 shrunk"),
    copies("a link to the copy", PREPARE, linked("photos/circle", "../copy"), "4 shrunk"),
    copies("names that are not UTF-8", PREPARE, lambda folder: (folder / "photos/a/000.png").rename(folder / "photos/a" / os.fsdecode(b"caf\xe9.png")), "4 shrunk"),
    copies("a name as long as a name can be", PREPARE, lambda folder: (folder / "photos/a/000.png").rename(folder / "photos/a" / f"{'n' * 251}.png"), "4 shrunk"),
    copies("a file that is no image and not UTF-8", PREPARE, made(os.fsdecode(b"photos/caf\xe9\n.txt")), "1 left out", "caf\\xe9\\n.txt: no image"),
    copies("an empty folder", to("copy", "empty"), lambda folder: (folder / "empty").mkdir(), "copy:"),
    # -- embed
    embed("out is empty", ("out=",), None, "out=: must be a text that is not empty"),
    embed("out has no suffix", ("out=features",), None, "out=features", "must end in .parquet"),
    embed("out has another suffix", ("out=features.csv",), None, "must end in .parquet"),
    embed("out is only a suffix", ("out=.parquet",), None, "must end in .parquet"),
    embed("out is a folder", ("out=x.parquet",), lambda folder: (folder / "x.parquet").mkdir(), "x.parquet is there already"),
    embed("out is a pipe", ("out=x.parquet",), lambda folder: os.mkfifo(folder / "x.parquet"), "is there already"),
    embed("out is there", ("out=x.parquet",), made("x.parquet"), "is there already", "another name"),
    embed("out is a link to nothing", ("out=x.parquet",), linked("x.parquet", "nowhere"), "is there already"),
    embed("out is below a file", ("out=note/x.parquet",), made("note"), "cannot be written"),
    embed("out is too long", (f"out={'n' * 300}.parquet",), None, "cannot be written", "too long"),
    embed("out cannot be made", ("out=/proc/x.parquet",), None, "cannot be written"),
    embed("another embedding was begun there", (), begun(), "begun with another images", "remove it"),
    embed("the place of its parts is a file", (), made("features.parquet.parts"), "cannot be written"),
    *(
        embed(f"the note of its parts {what}", (), made("features.parquet.parts/about.json", content), "about.json is damaged", "remove")
        for what, content in (("is empty", b""), ("is cut", b"{"), ("is a list", b"[]x"), ("is a number", b"5"), ("is no text", b"\xff\xfe"))
    ),
    # -- reconstruct
    reconstruct("out is empty", ("out=",), None, "out=: must be a text that is not empty"),
    reconstruct("out is a file", ("out=note",), made("note"), "out=note is there already"),
    reconstruct("out is a folder with files", ("out=mine",), made("mine/x"), "out=mine is there already"),
    reconstruct("out is below a file", ("out=note/x",), made("note"), "out=note/x cannot be written"),
    reconstruct("out is too long", (f"out={'n' * 300}",), None, "cannot be written", "too long"),
    reconstruct("out is a pipe", ("out=pipe",), lambda folder: os.mkfifo(folder / "pipe"), "out=pipe"),
    reconstruct("out is a link to nothing", ("out=link",), linked("link", "nowhere"), "out=link"),
    reconstruct("the mask is empty", ("mask=''",), None, "mask=: must be a number or a text that is not empty"),
    reconstruct("the mask is a folder", ("mask=photos",), None, "mask=photos", "must be a ratio"),
    reconstruct("the mask is a pipe", ("mask=pipe",), lambda folder: os.mkfifo(folder / "pipe"), "mask=pipe", "must be a ratio"),
    reconstruct("the mask is no picture", ("mask=note",), made("note", b"text"), "mask=note cannot be read"),
    reconstruct("the mask is an empty file", ("mask=note",), made("note"), "mask=note cannot be read", "empty"),
    reconstruct("the mask is too long", (f"mask={'n' * 5000}",), None, "must be a ratio"),
    reconstruct("the mask hides nothing", ("mask=0",), None, "mask=0", "hidden"),
    reconstruct("the mask hides all", ("mask=1",), None, "mask=1", "visible"),
    reconstruct("the mask is a black picture", ("mask=black.png",), lambda folder: Image.new("L", (8, 8)).save(folder / "black.png"), "hides 0"),
    # -- masks in Python
    masked("a list", [[True]], "list", "must be a ratio"),
    masked("a mapping", {}, "dict", "must be a ratio"),
    masked("bytes", b"x", "bytes", "must be a ratio"),
    masked("True", True, "bool", "must be a ratio"),
    masked("a text", "stripes", "mask=stripes", "random, block, grid"),
    masked("an empty text", "", "must be a ratio"),
    masked("more than all", 1.5, "mask=1.5", "between 0 and 1"),
    masked("NaN", float("nan"), "mask=NaN", "must be finite"),
    masked("of words", np.full((4, 4), "a"), "type <U1", "True or False"),
    masked("of objects", np.full((4, 4), None), "type object", "True or False"),
    masked("complex", torch.zeros(4, 4, dtype=torch.complex64), "complex64", "True or False"),
    masked("of NaN", np.full((4, 4), np.nan), "float64", "True or False"),
    masked("of another size", np.ones((3, 5), bool), "shape (3, 5)", "for patches or"),
    masked("of one dimension", np.ones(16, bool), "shape (16,)", "for patches or"),
    masked("of no dimension", np.array(True), "shape ()", "for patches or"),
    masked("empty", np.ones((0, 4), bool), "shape (0, 4)"),
    masked("for three images of two", own(lambda hidden: np.stack([hidden] * 3)), "3 planes for 2 images", images=2),
    masked("for no images", own(lambda hidden: np.stack([hidden] * 3)[:0]), "0 planes for 1 images"),
    masked("False everywhere", own(np.zeros_like), "hides 0"),
    masked("True everywhere", own(np.ones_like), "a visible"),
    masked("not the same count for each", own(lambda hidden: np.stack([hidden, hidden | np.eye(*hidden.shape, dtype=bool)])), "same number", images=2),
    masked("numbers", own(lambda hidden: hidden.astype(np.int64)), ends=0),
    masked("a tensor", own(torch.from_numpy), ends=0),
    masked("for each image", own(lambda hidden: np.stack([hidden] * 2)), images=2, ends=0),
]  # fmt: skip
