"""Pictures as users have them: every mode and format, upright, over white; and what is refused."""

import io
import math
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from doodl_cli import pictures
from doodl_cli.errors import UserError
from doodl_cli.pictures import fit_picture, from_image, psnr, read_picture

KEY = "image"
ORIENTATION = 0x0112
MODES = [
    ("PNG", "1"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "RGB"), ("PNG", "RGBA"),
    ("PNG", "I;16"), ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "YCbCr"),
    ("WEBP", "RGB"), ("WEBP", "RGBA"), ("WEBP", "L"),
]  # fmt: skip


def halves(dark=64, light=192, size=(40, 24)):
    """Return a picture whose left half is dark and whose right half is light."""
    pixels = np.full((size[1], size[0], 3), dark, np.uint8)
    pixels[:, size[0] // 2 :] = light
    return Image.fromarray(pixels)


def in_mode(mode):
    if mode == "I;16":
        return Image.fromarray(np.asarray(halves().convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return halves().quantize(8)
    return halves(0, 255).convert("1") if mode == "1" else halves().convert(mode)


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_every_mode_of_every_format_is_read_as_rgb(kind, mode, tmp_path):
    path = tmp_path / "a picture"
    in_mode(mode).save(path, kind, **({} if kind == "PNG" else {"quality": 100}))
    picture = read_picture(str(path), KEY)
    assert (picture.mode, picture.size) == ("RGB", (40, 24))
    pixels = np.asarray(picture).astype(int)
    dark, light = (0, 255) if mode == "1" else (64, 192)
    assert abs(pixels[12, 5] - dark).max() <= 3
    assert abs(pixels[12, 34] - light).max() <= 3


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_over_white(kind, mode, tmp_path):
    picture = halves().convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 128]]), 20, 1).repeat(24, 0)))
    path = tmp_path / "a.png"
    picture = picture if mode == "PA" else picture.convert(mode)
    if mode == "PA":  # a palette with an alpha of its own for each colour
        picture = picture.quantize(8)
    picture.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = np.asarray(read_picture(str(path), KEY)).astype(int)
    assert (pixels[:, :20] == 255).all()
    assert abs(pixels[:, 20:] - (255 + 192) / 2).max() <= 2


@pytest.mark.parametrize(("mode", "value"), [("P", 1), ("L", 64), ("RGB", (64, 64, 64))])
def test_a_colour_declared_transparent_is_white(mode, value, tmp_path):
    picture = halves().convert("L")
    if mode == "P":
        picture = Image.fromarray((np.asarray(picture) == 64).astype(np.uint8), "P")
        picture.putpalette([192] * 3 + [64] * 3)
    picture.convert(mode).save(tmp_path / "a.png", transparency=value)
    pixels = np.asarray(read_picture(str(tmp_path / "a.png"), KEY))
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == 192).all()


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    grey = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=int(grey[0, 0]))
    pixels = np.asarray(read_picture(str(tmp_path / "a.png"), KEY))[..., 0]
    expected = np.arange(256).reshape(16, 16)
    expected[0, 0] = 255
    assert (pixels == expected).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(kind, orientation, tmp_path):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("black", (0, 0, 16, 8))  # a corner tells all eight orientations apart
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "a", kind, exif=exif, **({} if kind == "PNG" else {"quality": 100}))
    picture = read_picture(str(tmp_path / "a"), KEY)
    assert picture.size == (32, 16)
    difference = np.asarray(picture).astype(int) - np.asarray(upright)
    assert abs(difference).max() < 40


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"])
def test_nonsense_in_exif_does_not_spoil_a_picture(exif, tmp_path):
    halves().save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(str(tmp_path / "a.jpg"), KEY).size == (40, 24)


def test_a_cameras_jpeg_with_a_second_view_is_one_picture(tmp_path):
    halves().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[halves(0, 9)])
    pixels = np.asarray(read_picture(str(tmp_path / "a.jpg"), KEY)).astype(int)
    assert abs(pixels[12, 5] - 64).max() <= 3


def encode(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size=(80, 60)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def huge_png(width=60_000, height=60_000):
    """Return a file of a few bytes that says it holds billions of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def refused():
    yield "empty", b"", "is empty"
    yield "text", b"not a picture\n" * 100, "not understood"
    yield "gif", encode(noise(), "GIF"), "not understood"
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not understood"
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encode(noise(), kind)
        yield f"half a {kind}", whole[: len(whole) // 2], "must be a PNG, JPEG or WebP picture"
        yield f"head of a {kind}", whole[:20], "must be a PNG, JPEG or WebP picture"
    for kind in ("PNG", "WEBP"):
        moving = encode(noise(), kind, save_all=True, append_images=[halves(size=(80, 60))])
        yield f"moving {kind}", moving, "has 2 frames; must be one picture, not an animation"
    yield "bomb", huge_png(), "too large; must be at most 100 million pixels"
    yield "less of a bomb", huge_png(11_000, 11_000), "too large; must be at most 100 million"


REFUSED = list(refused())


@pytest.mark.parametrize(("content", "line"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_no_picture_is_refused_in_one_line(content, line, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_picture(str(path), KEY)
    message = str(raised.value)
    assert message.startswith(f"image={path}: ")
    assert line in message
    assert "\n" not in message


def test_a_path_without_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, line in (
        (tmp_path / "nowhere.png", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / ("x" * 300), "must be a PNG"),
    ):
        with pytest.raises(UserError, match=line):
            read_picture(str(path), "init.path")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def deny(*words, **options):
        raise PermissionError(13, "Permission denied")

    halves().save(tmp_path / "a.png")
    monkeypatch.setattr(pictures.Image, "open", deny)
    with pytest.raises(UserError, match="Permission denied"):
        read_picture(str(tmp_path / "a.png"), KEY)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 500), (500, 3), (1000, 700), (65, 64)])
def test_a_picture_of_any_size_fits(size):
    fitted = fit_picture(noise(size), (64, 96))
    assert fitted.shape == (3, 64, 96)
    assert fitted.dtype == torch.float32
    assert fitted.min() >= -1
    assert fitted.max() <= 1


def test_fitting_keeps_the_centre_and_the_aspect():
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    assert fit_picture(picture, (64, 64)).min() > 0.9  # the filter looks over the edge


def test_a_picture_of_the_right_size_is_not_touched():
    picture = noise((64, 64))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(((from_image(picture) + 1) * 127.5).round().to(torch.uint8), pixels)
    assert torch.equal(fit_picture(picture, (64, 64)), from_image(picture))


def test_psnr_is_its_formula():
    first = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert psnr(first, first) == math.inf
    assert psnr(first, first + 255) == 0
    assert psnr(first, first + 1) == pytest.approx(20 * math.log10(255))
