import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.builders import encode, picture
from vitmae.data import decode as module
from vitmae.data.decode import UnreadableImage, check, decode, jpeg_decoder
from vitmae.errors import UserError

DECODERS = ("simplejpeg", "torchcodec", "pillow")


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    """Each of the JPEG decoders in turn, as if it were the best that is installed."""
    for better in ("simplejpeg", "torchcodec.decoders")[: DECODERS.index(request.param)]:
        monkeypatch.setitem(sys.modules, better, None)
    jpeg_decoder.cache_clear()
    yield request.param
    jpeg_decoder.cache_clear()


def test_the_decoders_are_those_they_are_taken_for(decoder):
    assert (jpeg_decoder() is None) == (decoder == "pillow")


def test_a_jpeg_is_decoded_alike_by_every_decoder(decoder):
    image = picture()
    pixels = decode(encode(image, "JPEG", quality=95), 3, "x")
    assert pixels.shape == image.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - image).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_turned_upright(decoder, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    pixels = decode(data, channels, "x")
    assert pixels.shape == (*expected.shape[:2], channels)
    assert np.abs(pixels.reshape(expected.shape).astype(int) - expected).mean() < 1


def test_damaged_exif_tags_do_not_make_an_image_unreadable(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "JPEG", exif=exif)
    start = data.index(b"Exif") + 6
    assert decode(data[:start] + b"\xff" * 20 + data[start + 20 :], 3, "x").shape == (40, 60, 3)


def test_a_png_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture()
    np.testing.assert_array_equal(decode(encode(image, exif=exif), 3, "x"), np.rot90(image, -1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_a_lossless_image_comes_back_as_it_was(kind):
    image = picture()
    np.testing.assert_array_equal(decode(encode(image, kind), 3, "x"), image)


def test_a_cmyk_jpeg_has_the_colours_it_shows(decoder):
    image = Image.fromarray(picture())
    pixels = decode(encode(image.convert("CMYK"), "JPEG", quality=95), 3, "x")
    assert np.abs(pixels.astype(int) - np.array(image)).mean() < 6


def test_a_grey_jpeg_has_three_equal_channels(decoder):
    pixels = decode(encode(picture(channels=1), "JPEG"), 3, "x")
    assert pixels.shape == (40, 60, 3)
    assert (pixels == pixels[..., :1]).all()


def test_colours_become_grey_by_their_brightness(decoder):
    image = picture()
    pixels = decode(encode(image, "JPEG", quality=95), 1, "x")
    brightness = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels[..., 0] - brightness).mean() < 3


def test_a_palette_image_has_its_colours():
    image = Image.fromarray(picture()).quantize(64)
    np.testing.assert_array_equal(decode(encode(image), 3, "x"), np.array(image.convert("RGB")))


def test_what_is_transparent_is_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = 255, 0, 0, 255
    seen = decode(encode(pixels), 3, "x")
    assert (seen[:4] == (255, 0, 0)).all()
    assert (seen[4:] == 255).all()
    assert (decode(encode(pixels), 1, "x")[4:] == 255).all()
    np.testing.assert_array_equal(decode(encode(pixels), 4, "x"), pixels)


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 4, 8))
    seen = decode(encode(image, transparency=0), 3, "x")
    assert (seen[:, :4] == (200, 100, 50)).all()
    assert (seen[:, 4:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(channels):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    seen = decode(encode(values), channels, "x")
    assert seen.shape == (8, 8, channels)
    np.testing.assert_array_equal(seen[..., 0], np.rint(values / 257))


def test_black_and_white_become_0_and_255():
    image = Image.new("1", (4, 4))
    image.putpixel((1, 2), 1)
    seen = decode(encode(image), 1, "x")
    assert seen[2, 1, 0] == 255
    assert seen.sum() == 255


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("order", ["first", "last"])
def test_an_array_holds_any_number_of_channels(channels, order):
    array = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, array.transpose(2, 0, 1) if order == "first" else array)
    np.testing.assert_array_equal(decode(file.getvalue(), channels, "x"), array)


@pytest.mark.parametrize(("kind", "scale"), [(np.float32, 1.0), (np.float64, 1.0), (np.uint16, 65535)])
def test_an_array_of_other_numbers_becomes_bytes(kind, scale):
    file = io.BytesIO()
    np.save(file, (np.array([[0.0, 0.6, 1.0]]) * scale).astype(kind))
    assert decode(file.getvalue(), 1, "x").ravel().tolist() == [0, 153, 255]


def test_a_tiff_holds_a_channel_on_each_page():
    pages = [Image.fromarray(picture(seed, channels=1)) for seed in range(5)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode(data, 5, "x"), np.stack([np.array(page) for page in pages], axis=-1))


def test_an_array_is_never_unpickled():
    file = io.BytesIO()
    np.save(file, np.array([{"a": print}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImage, match="pickle"):
        decode(file.getvalue(), 1, "x.npy")


@pytest.mark.parametrize(
    ("data", "channels"),
    [(encode(picture()), 4), (encode(picture(), "JPEG"), 12), (encode(np.zeros((4, 4), np.uint16)), 4)],
)
def test_channels_that_a_file_cannot_give_are_refused_by_name(data, channels):
    with pytest.raises(UserError, match=r"photo\.png.*data\.in_chans") as error:
        decode(data, channels, "photo.png")
    assert "\n" not in str(error.value)


def test_numbers_that_are_no_pixels_are_refused_by_name():
    file = io.BytesIO()
    np.save(file, np.array([[300.0]]))
    with pytest.raises(UserError, match=r"photo\.npy.*\[0, 1\]"):
        decode(file.getvalue(), 1, "photo.npy")


WHOLE = {kind: encode(picture(), kind) for kind in ("JPEG", "PNG")}
BROKEN = {
    "a jpeg cut in half": encode(picture(), "JPEG")[:500],
    "a jpeg without its end": encode(picture(0, 200, 200), "JPEG")[:-40],
    "a png cut in half": encode(picture())[:300],
    "a png without its end": encode(picture(0, 200, 200))[:-60],
    "a webp cut in half": encode(picture(0, 200, 200), "WEBP")[:500],
    "text": b"<html>not found</html>",
    "nothing": b"",
    "an array cut short": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9), }",
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_damaged_file_cannot_be_decoded_and_the_error_names_it(what, decoder):
    with pytest.raises(UnreadableImage, match=r"^photo: ."):
        decode(BROKEN[what], 3, "photo")


def zeroed(data, start=0.5, length=300):
    start = int(start * len(data))
    return data[:start] + bytes(length) + data[start + length :]


def test_a_jpeg_of_which_a_part_is_zeros_is_damaged_whatever_the_decoder(decoder):
    for start in (0.2, 0.5, 0.8):
        with pytest.raises(UnreadableImage, match="a part of the file is zeros"):
            decode(zeroed(encode(picture(0, 300, 400), "JPEG", quality=95), start), 3, "photo")


@pytest.mark.parametrize("kind", [{"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 4}])
def test_simplejpeg_finds_damage_in_other_kinds_of_jpeg(kind):
    noisy = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    with pytest.raises(UnreadableImage, match="Corrupt JPEG data"):
        decode(zeroed(encode(noisy, "JPEG", **kind)), 3, "photo")


def test_zeros_that_are_no_damage_are_allowed(decoder):
    flat = np.full((3000, 3000, 3), 255, np.uint8)
    whole = encode(picture(), "JPEG")
    thumbnail = whole[:2] + b"\xff\xe1\x01\x00" + bytes(254) + whole[2:]
    for data in (
        encode(flat, "JPEG", optimize=True),
        whole[:-2] + bytes(90) + whole[-2:],
        whole + bytes(900),
        thumbnail,
    ):
        assert bytes(64) in data
        assert decode(data, 3, "photo").ndim == 3


def test_the_size_of_a_jpeg_is_looked_at_before_memory_is_taken(decoder):
    data = encode(picture(), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(data[:start] + b"\xff\xdc\xff\xdc" + data[start + 4 :], 3, "photo")


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite values")])
def test_values_that_are_no_numbers_are_named(value, what):
    array = np.zeros((4, 4), np.float32)
    array[1, 2] = value
    file = io.BytesIO()
    np.save(file, array)
    for data in (file.getvalue(), encode(Image.fromarray(array), "TIFF")):
        with pytest.raises(UnreadableImage, match=f"the image holds {what}"):
            decode(data, 1, "photo")
        assert check(io.BytesIO(data)) == f"the image holds {what}"


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_check_finds_a_damaged_file(what):
    reason = check(io.BytesIO(BROKEN[what]))
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_check_finds_nothing_wrong_with_a_whole_file(kind):
    assert check(io.BytesIO(encode(picture(), kind))) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_with_something_behind_its_end_is_whole(kind, decoder):
    data = encode(picture(), kind) + b"camera maker's notes"
    assert check(io.BytesIO(data)) is None
    assert decode(data, 3, "x").shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_check_does_not_decode_a_whole_file(kind, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    assert check(io.BytesIO(WHOLE[kind])) is None


def test_every_extension_that_is_looked_for_can_be_decoded():
    for extension in module.EXTENSIONS - {".npy"}:
        kind = Image.registered_extensions()[extension]
        assert decode(encode(picture(), kind), 3, "x").shape == (40, 60, 3)
