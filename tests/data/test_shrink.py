import errno
import os
import threading

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

import vitmae.data.shrink as shrink_module
from vitmae.data.decode import decode
from vitmae.data.shrink import LEFT_OUT, Shrinking, shrink_folder
from vitmae.errors import UserError

HOW = Shrinking(16)


def picture(size=(64, 48), mode="RGB"):
    """Smooth, with a bright upper left corner: turning it shows."""
    image = Image.new("RGB", size, (40, 60, 80))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 3, size[1] // 3), fill=(240, 200, 30))
    return image.convert(mode)


def save(image, path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


def run(folder, how=HOW, **settings):
    return shrink_folder(folder / "src", folder / "dst", how, workers=2, **settings)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(path, in_chans=3):
    return decode(path.read_bytes(), in_chans, path.name).astype(float)


def test_the_copy_has_the_same_tree_and_names_and_the_short_side_that_is_asked_for(tmp_path):
    names = ["a/b/x.jpg", "a/y.PNG", "z.webp", "a/t.tif", "u.bmp", "v.ppm"]
    for name in names:
        save(picture((64, 48) if name[0] == "a" else (48, 64)), tmp_path / "src" / name)
    assert run(tmp_path).counts == {"shrunk": len(names)}
    for name in names:
        with Image.open(tmp_path / "dst" / name) as image, Image.open(tmp_path / "src" / name) as original:
            assert image.size == ((21, 16) if name[0] == "a" else (16, 21))
            assert image.format == original.format
        near = np.asarray(picture((64, 48) if name[0] == "a" else (48, 64)).resize(image.size, Image.Resampling.BOX))
        assert np.abs(pixels(tmp_path / "dst" / name) - near).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_copy_looks_as_its_original_does_whichever_way_it_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.jpg", "y.tif"):
        path = save(picture(), tmp_path / "src" / name, exif=exif)
        run(tmp_path) if name == "y.tif" else None
    for name in ("x.jpg", "y.tif"):
        original, copy = pixels(tmp_path / "src" / name), pixels(tmp_path / "dst" / name)
        assert min(copy.shape[:2]) == 16
        assert (copy.shape[0] > copy.shape[1]) == (original.shape[0] > original.shape[1])
        near = Image.fromarray(original.astype(np.uint8)).resize(copy.shape[1::-1], Image.Resampling.BOX)
        assert np.abs(copy - np.asarray(near)).mean() < 8, path


def test_a_colour_profile_goes_with_the_image(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("x.jpg", "x.png", "x.webp", "x.tif"):
        save(picture(), tmp_path / "src" / name, icc_profile=profile)
    run(tmp_path)
    for name in ("x.jpg", "x.png", "x.webp", "x.tif"):
        with Image.open(tmp_path / "dst" / name) as image:
            assert image.info["icc_profile"] == profile


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "x.jpg"), ("L", "x.jpg"), ("RGBA", "x.png"), ("LA", "x.png")])
def test_other_colours_stay_what_they_are(tmp_path, mode, name):
    save(picture(mode=mode), tmp_path / "src" / name)
    run(tmp_path)
    with Image.open(tmp_path / "dst" / name) as image:
        assert image.mode == mode
    near = np.asarray(picture().convert(mode).convert("RGB").resize((21, 16), Image.Resampling.BOX))
    assert np.abs(pixels(tmp_path / "dst" / name) - near).mean() < 8


def test_a_palette_is_averaged_as_colours_and_a_masks_classes_are_not_averaged(tmp_path):
    save(picture().quantize(4), tmp_path / "src" / "x.png")
    run(tmp_path)
    assert len(np.unique(pixels(tmp_path / "dst" / "x.png").reshape(-1, 3), axis=0)) > 4
    classes = np.zeros((48, 64), np.uint8)
    classes[::2] = 7
    save(Image.fromarray(classes), tmp_path / "m" / "src" / "x.png")
    run(tmp_path / "m", Shrinking(16, nearest=True))
    assert set(np.unique(np.asarray(Image.open(tmp_path / "m" / "dst" / "x.png")))) <= {0, 7}


def test_what_is_small_enough_or_cannot_be_averaged_is_copied_byte_for_byte(tmp_path):
    src = tmp_path / "src"
    save(picture((16, 90)), src / "small.jpg", quality=31)
    save(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27), src / "deep.png")
    save(picture(), src / "moves.gif", save_all=True, append_images=[picture(mode="L")])
    np.save(src / "array.npy", np.zeros((40, 50, 5), np.uint8))
    assert run(tmp_path).counts == {"copied": 4}
    assert {name: tree(tmp_path / "dst")[name] for name in tree(src)} == tree(src)


def test_what_is_no_image_or_cannot_be_read_is_listed_and_nothing_else_is_lost(tmp_path):
    src = tmp_path / "src"
    whole = save(picture((200, 150)), src / "a" / "x.jpg").read_bytes()
    (src / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (src / "small-and-cut.jpg").write_bytes(save(picture((12, 12)), src / "small.jpg").read_bytes()[:300])
    (src / "noise.png").write_bytes(b"no image at all")
    (src / "labels.csv").write_text("x,1\n")
    (src / ".hidden.jpg").write_bytes(whole)
    (src / "pickled.npy").write_bytes(b"\x93NUMPY no")
    before = tree(src)
    tally = run(tmp_path)
    listed = ["a/cut.jpg", ".hidden.jpg", "labels.csv", "noise.png", "pickled.npy", "small-and-cut.jpg"]
    assert sorted(name for name, _ in tally.left_out) == sorted(listed)
    lines = (tmp_path / "dst" / LEFT_OUT).read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in lines) == sorted(listed)
    assert all(line.partition("\t")[2] for line in lines)
    assert dict(tally.left_out)["labels.csv"] == "no image"
    assert tree(src) == before
    assert {"a/x.jpg", "small.jpg"} == set(tree(tmp_path / "dst")) - {"prepared.json", LEFT_OUT}


def test_damage_inside_a_jpeg_does_not_become_a_part_of_the_copy(tmp_path):
    data = save(picture((300, 200)), tmp_path / "src" / "x.jpg", quality=95, progressive=True).read_bytes()
    half = len(data) // 2
    (tmp_path / "src" / "x.jpg").write_bytes(data[:half] + bytes(200) + data[half + 200 :])
    ((name, reason),) = run(tmp_path).left_out
    assert (name, reason[:12]) == ("x.jpg", "Corrupt JPEG")


def test_a_second_run_does_only_what_the_first_had_not_and_overwrites_nothing(tmp_path):
    for number in range(6):
        save(picture(), tmp_path / "src" / f"{number}.jpg")
    run(tmp_path)
    finished = tree(tmp_path / "dst")
    (tmp_path / "dst" / "3.jpg").unlink()
    (tmp_path / "dst" / "4.jpg").write_bytes(b"")  # as a crash of the machine may leave it
    (tmp_path / "dst" / "5.jpg").write_bytes(b"mine")
    (tmp_path / "dst" / "3.jpg.tmp123").write_bytes(b"a killed run's")
    assert run(tmp_path).counts == {"shrunk": 2, "there already": 4}
    assert tree(tmp_path / "dst") == finished | {"5.jpg": b"mine"}


def test_an_original_that_changed_since_is_listed_and_its_copy_stays(tmp_path):
    path = save(picture(), tmp_path / "src" / "x.jpg")
    run(tmp_path)
    copy = (tmp_path / "dst" / "x.jpg").read_bytes()
    save(picture((80, 80)), path)
    os.utime(path, ns=(2**62, 2**62))
    ((name, reason),) = run(tmp_path).left_out
    assert name == "x.jpg"
    assert "changed" in reason
    assert (tmp_path / "dst" / "x.jpg").read_bytes() == copy


def test_an_interruption_leaves_whole_files_and_the_next_run_ends_as_one_that_was_not_interrupted(tmp_path):
    for number in range(24):  # more than 5 that are done and 8 that are in work
        save(picture(), tmp_path / "src" / f"{number:02d}.jpg")
    shrink_folder(tmp_path / "src", tmp_path / "whole", HOW, workers=1)

    def interrupt(done, total):
        assert total == 24
        if done == 5:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=interrupt)
    assert threading.active_count() == threads
    part, whole = tree(tmp_path / "dst"), tree(tmp_path / "whole")
    assert 5 <= len(part) - 1 < 24
    assert all(whole[name] == content for name, content in part.items())
    assert run(tmp_path).counts["there already"] == len(part) - 1
    assert tree(tmp_path / "dst") == whole


def test_quality_is_that_of_the_files_written(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    save(Image.fromarray(drawn), tmp_path / "src" / "x.jpg")
    sizes = []
    for quality in (30, 95):
        shrink_folder(tmp_path / "src", tmp_path / str(quality), Shrinking(40, quality), workers=1)
        sizes.append((tmp_path / str(quality) / "x.jpg").stat().st_size)
    assert sizes[0] * 2 < sizes[1]


def test_folders_in_each_other_are_refused(tmp_path):
    save(picture(), tmp_path / "src" / "x.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "src")
    for dst in ("src", "src/small", ".", "link/small"):
        with pytest.raises(UserError, match="must not contain each other"):
            shrink_folder(tmp_path / "src", tmp_path / dst, HOW, workers=1)
    assert list(tree(tmp_path)) == ["src/x.jpg"]
    with pytest.raises(UserError, match="not a folder"):
        shrink_folder(tmp_path / "nothing", tmp_path / "dst", HOW, workers=1)


def test_a_folder_of_something_else_or_of_other_settings_is_not_written_into(tmp_path):
    save(picture(), tmp_path / "src" / "x.jpg")
    save(picture(), tmp_path / "full" / "y.jpg")
    with pytest.raises(UserError, match="holds other files"):
        shrink_folder(tmp_path / "src", tmp_path / "full", HOW, workers=1)
    run(tmp_path)
    with pytest.raises(UserError, match="short_side=16"):
        run(tmp_path, Shrinking(24))


def test_two_runs_are_not_at_one_copy_at_once(tmp_path):
    save(picture(), tmp_path / "src" / "x.jpg")

    def again(done, total):
        with pytest.raises(UserError, match="another process"):
            run(tmp_path)

    run(tmp_path, report=again)


def test_a_full_disk_is_one_line_and_no_image_is_blamed_for_it(tmp_path, monkeypatch):
    save(picture(), tmp_path / "src" / "x.jpg")

    def full(path, durable):
        raise OSError(errno.ENOSPC, "No space left on device")

    run(tmp_path)
    (tmp_path / "dst" / "x.jpg").unlink()
    monkeypatch.setattr(shrink_module, "atomic_write", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(tmp_path)


def test_linked_folders_are_followed_once_and_neither_circles_nor_the_copy(tmp_path):
    save(picture(), tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src" / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src" / "circle").symlink_to(tmp_path / "src")
    (tmp_path / "src" / "copy").symlink_to(tmp_path / "dst")
    run(tmp_path)
    run(tmp_path)
    assert {"one/x.jpg"} == set(tree(tmp_path / "dst")) - {"prepared.json", LEFT_OUT}
