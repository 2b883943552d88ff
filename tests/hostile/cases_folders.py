"""Folders, globs and lists of images as users have them: links in circles, names that are no text, nothing at all."""

import os

import vitmae
from tests.data.builders import encode, picture
from tests.hostile.case import TINY, Case
from vitmae.data.sources.folder import Folder
from vitmae.trained.images import FolderImages, Preprocessing

PNG = encode(picture(1, 8, 8))
NO_TEXT = os.fsdecode(b"caf\xe9.png")
EMBED = ("ckpt={run}", "num_workers=0")
DATA = ("data=folder", "data.img_size=8", "data.num_workers=0", "logger=none", "trainer=cpu")
MAE = (
    *TINY,
    "data=folder",
    "data.img_size=8",
    "data.num_workers=0",
    "backbone=vit_pico",
    "model=mae",
    "data.batch_size=2",
)
DONE, BEGUN = ("features.parquet",), ("features.parquet.parts",)


def tree(*names):
    """Makes files below the working directory, each a picture."""

    def files(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(PNG)

    return files


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def linked(**links):
    """Two classes of two pictures, and links: name with _ for / -> target."""

    def files(folder):
        for name, target in links.items():
            (folder / "photos" / name.replace("_", "/")).symlink_to(target)

    return files


def every_folder_links_to_all_others(folder):
    names = "abcdefgh"
    tree(*(f"photos/{name}/1.png" for name in names))(folder)
    for name in names:
        for other in names:
            (folder / "photos" / name / f"to{other}").symlink_to(f"../{other}")


def embeds(id, images, files, count, *says):
    says = (f"{count} vectors of width 16, 0 images left out", *says)
    return Case(f"embed: {id}", "embed", (*EMBED, f"images={images}"), files, ends=0, says=says, writes=DONE)


def refused(id, images, files, *says):
    """A place that neither embed nor a training takes."""

    def load(folder, run):
        Folder().load(images.strip("'"), (8, 8), 3)

    return [
        Case(f"embed: {id}", "embed", (*EMBED, f"images={images}"), files, says=says),
        Case(f"python: data of {id}", load, files=files, says=says),
    ]


def trains(id, path, files, *says, more=()):
    return Case(f"train: {id}", "train", (*MAE, f"data.path={path}", *more), files, ends=0, says=says, is_slow=True)


def untrainable(id, path, files, *says, more=()):
    return Case(f"train: {id}", "train", (*DATA, f"data.path={path}", *more), files, says=says)


def a_file_vanishes(folder, run):
    listed = FolderImages(str(folder / "photos"), Preprocessing((8, 8), 1, 1.0), skip_unreadable=False)
    (folder / "photos" / "b" / "003.png").unlink()
    list(listed.batches(4, 0))


def a_path_of_bytes(folder, run):
    vitmae.load(run, device="cpu").encode(os.fsencode(folder / "photos" / "a" / "000.png"))


CASES = [
    embeds("a link to its own folder", "photos", linked(circle="."), 4, "not followed"),
    embeds("a link to the folder above", "photos", linked(a_up=".."), 4, "not followed"),
    embeds("two links in a circle", "photos", linked(a_tob="../b", b_toa="../a"), 4, "not followed"),
    embeds("two links to the same place", "photos", linked(one=".", two="."), 4, "2 links"),
    embeds("links between all folders", "photos", every_folder_links_to_all_others, 12),
    embeds("a circle in a glob", "'photos/**/*.png'", linked(one=".", two="."), 4),
    embeds("a glob that ends in stars", "'photos/**'", linked(one="."), 4),
    embeds("a glob of a glob", "'phot*/**/0*.png'", None, 4),
    embeds("a folder that is a link", "album", lambda folder: (folder / "album").symlink_to("photos"), 4),
    embeds("a slash at the end", "photos/", None, 4),
    embeds("a point in the path", "./photos/../photos", None, 4),
    embeds("a folder named like a glob", "'album [1]'", tree("album [1]/1.png"), 1),
    embeds("capital suffixes", "album", tree("album/1.PNG", "album/2.Jpg"), 2),
    embeds(
        "hidden files and those of other systems",
        "album",
        tree("album/1.png", "album/._1.png", "album/.2.png", "album/Thumbs.db", "album/.x/3.png"),
        1,
    ),
    embeds("a name that is not UTF-8", "album", tree(f"album/{NO_TEXT}"), 1),
    embeds("a folder that is not UTF-8", "album", tree(f"album/{NO_TEXT}/1.png"), 1),
    embeds("a name of two lines", "album", tree("album/one\ntwo.png"), 1),
    embeds("a name as long as a name can be", "album", tree(f"album/{'n' * 251}.png"), 1),
    embeds("one image", "photos/a/000.png", None, 1),
    embeds(
        "a list with CRLF, a mark, comments and empty lines",
        "list.txt",
        text("list.txt", b"\xef\xbb\xbf# mine\r\n\r\nphotos/a/000.png\r\n photos/b/002.png \r\n"),
        2,
    ),
    embeds(
        "a list that names an image twice",
        "list.txt",
        text("list.txt", b"photos/a/000.png\nphotos/a/000.png\n"),
        1,
        "1 images more than once",
    ),
    embeds(
        "a list of names that are not UTF-8",
        "list.txt",
        lambda folder: (tree(NO_TEXT)(folder), text("list.txt", b"caf\xe9.png\n")(folder)),
        1,
    ),
    embeds("a list in capitals", "LIST.TXT", text("LIST.TXT", b"photos/a/000.png"), 1),
    Case(
        "reconstruct: names that are not UTF-8 and of two lines",
        "reconstruct",
        (*EMBED, "images=album"),
        tree(f"album/{NO_TEXT}", "album/one\ntwo.png"),
        ends=0,
        says=("2 images",),
        writes=("reconstructions",),
    ),
    *refused("nothing there", "nowhere", None, "nowhere does not exist"),
    *refused("a path below a file", "note.txt/photos", text("note.txt", b""), "does not exist"),
    *refused("an empty folder", "empty", lambda folder: (folder / "empty").mkdir(), "no image below empty"),
    *refused("a folder of other files", "album", tree("album/1.txt", "album/2.mp4"), "no image below album", ".jpg"),
    *refused(
        "a folder with hidden images only", "album", tree("album/.1.png", "album/.x/2.png"), "no image below album"
    ),
    *refused("a glob that matches nothing", "'photos/*.tiff'", None, "matches no image"),
    *refused("a glob that matches folders", "'photos/*'", None, "matches no image"),
    *refused("a glob of a missing folder", "'nowhere/**/*.png'", None, "matches no image"),
    *refused("an archive", "album.zip", text("album.zip", b"PK\x03\x04"), "album.zip is a file", "give a folder"),
    *refused("an archive of another kind", "album.tar", text("album.tar", bytes(1024)), "album.tar is a file"),
    *refused("a movie", "movie.mp4", text("movie.mp4", bytes(100)), "movie.mp4 is a file"),
    *refused("a pipe", "pipe", lambda folder: os.mkfifo(folder / "pipe"), "pipe or a device"),
    *refused("a pipe named as a list", "pipe.txt", lambda folder: os.mkfifo(folder / "pipe.txt"), "pipe or a device"),
    *refused("a device", "/dev/zero", None, "pipe or a device"),
    *refused("a link to itself", "self", lambda folder: (folder / "self").symlink_to("self"), "symbolic links"),
    *refused("a name that is too long", "a" * 300, None, "too long"),
    *refused("the home of nobody", "'~nobody-of-that-name/photos'", None, "does not exist"),
    *refused("an empty list", "list.txt", text("list.txt", b"\n# nothing\n"), "lists no image"),
    *refused("a list with NUL", "list.txt", text("list.txt", b"photos/a/000.png\0"), "NUL", "UTF-8"),
    *refused("a list in UTF-16", "list.txt", text("list.txt", "photos/a/000.png".encode("utf-16")), "NUL", "UTF-8"),
    *(
        Case(
            f"embed: a list with {what}",
            "embed",
            (*EMBED, "images=list.txt"),
            text("list.txt", content),
            says=(says, "cannot be read", "on_error=skip"),
            writes=BEGUN,
        )
        for what, content, says in (
            ("a missing image", b"photos/a/000.png\nphotos/a/999.png\n", "999.png"),
            ("an absolute path", b"/nowhere/1.png\n", "/nowhere/1.png"),
            ("labels", b"photos/a/000.png 0\n", "000.png 0"),
            ("a folder", b"photos/a\n", "photos/a"),
            ("names in latin-1", "photos/café.png".encode("latin-1"), "caf\\xe9.png"),
            ("a name of 300 letters", b"n" * 300, "too long"),
        )
    ),
    Case("embed: an empty path", "embed", (*EMBED, "images="), says=("images=: must be a text that is not empty",)),
    Case(
        "python: a file vanishes while the folder is read",
        a_file_vanishes,
        says=("003.png", "No such file", "on_error=skip"),
    ),
    Case("python: a path of bytes", a_path_of_bytes, says=("bytes", "must be a path")),
    untrainable("an empty path", "", None, "data.path=: must be a text that is not empty"),
    untrainable("an empty path of training images", "{train: ''}", None, "a text that is not empty"),
    untrainable("an empty list of paths", "{train: []}", None, "empty list"),
    untrainable("an empty path in a list", "['']", None, "a text that is not empty"),
    untrainable("no path of training images", "{val: photos}", None, "must name train"),
    untrainable("a split that does not exist", "{train: photos, dev: photos}", None, "must name train"),
    untrainable("a number", "5", None, "data.path=5", "must be"),
    untrainable(
        "a class without images",
        "photos",
        lambda folder: (folder / "photos" / "c").mkdir(),
        "c holds no image",
        "remove it",
    ),
    untrainable("a class that is another's folder", "photos", linked(c="a"), "photos/c links to a folder", "remove it"),
    untrainable("one image", "album", tree("album/1.png"), "no image is left", "val_fraction"),
    untrainable(
        "one image of each class", "album", tree("album/a/1.png", "album/b/1.png"), "no image is left", "val_fraction"
    ),
    untrainable(
        "one class for a classifier",
        "album",
        tree(*(f"album/a/{n}.png" for n in range(20))),
        "needs labels",
        more=("model=vit", "data.batch_size=4", "data.img_size=16"),
    ),
    untrainable(
        "a batch larger than the set",
        "album",
        tree(*(f"album/{n}.png" for n in range(20))),
        "data.batch_size=64",
        "lower it",
    ),
    untrainable(
        "masks that are nowhere",
        "photos",
        None,
        "data.source.masks=nowhere",
        "not a folder",
        more=("data.source.masks=nowhere", "data.source.num_mask_classes=2"),
    ),
    untrainable(
        "masks without a path",
        "photos",
        None,
        "data.source.masks= is not a folder",
        more=("data.source.masks=''", "data.source.num_mask_classes=2"),
    ),
    trains("a folder called train only", "album", tree(*(f"album/train/{c}/{n}.png" for c in "ab" for n in range(12)))),
    trains("class folders in folders", "album", tree(*(f"album/{c}/deep/er/{n}.png" for c in "ab" for n in range(12)))),
    trains(
        "classes that are not UTF-8",
        "album",
        tree(*(f"album/{c}/{n}.png" for c in (NO_TEXT, "b\nc") for n in range(12))),
    ),
    trains(
        "a circle of links",
        "album",
        lambda folder: (
            tree(*(f"album/{c}/{n}.png" for c in "ab" for n in range(12)))(folder),
            (folder / "album" / "a" / "x").symlink_to(".."),
        ),
    ),
    trains(
        "a pipe among the images, skipped",
        "album",
        lambda folder: (
            tree(*(f"album/{c}/{n}.png" for c in "ab" for n in range(12)))(folder),
            os.mkfifo(folder / "album" / "a" / "x.png"),
        ),
        "1 images cannot be read and are skipped",
        more=("data.on_error=skip",),
    ),
]
