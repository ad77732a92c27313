"""Pictures: what is read from files and arrays, how it is fitted, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgealign.errors import ImageUnreadable, InputUnreadable, InvalidInput, MissingExtra
from edgealign.images import fit, read_picture
from edgealign.inputs import ImageInput

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_the_same_picture_in_every_lossless_format_is_the_same_sample(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    read = read_picture(tmp_path / f"a.{suffix}")
    assert np.array_equal(read.pixels, PIXELS)
    assert read.sha256 == read_picture(PIXELS).sha256
    turned = np.ascontiguousarray(PIXELS.reshape(9, 6, 3))
    assert read_picture(turned).sha256 != read.sha256, "the same bytes in another shape are another picture"


def test_modes_of_all_kinds_become_rgb(tmp_path: Path) -> None:
    gray = PIXELS[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(read_picture(tmp_path / "gray.png").pixels, np.repeat(gray[:, :, None], 3, axis=2))
    deep = gray.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png").pixels[:, :, 1], gray)
    clear = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png").pixels == 255).all()
    assert (read_picture(clear).pixels == 255).all()
    Image.fromarray(PIXELS).quantize(8).save(tmp_path / "palette.gif")
    assert read_picture(tmp_path / "palette.gif").pixels.shape == (6, 9, 3)
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_picture(tmp_path / "cmyk.jpg").pixels.shape == (6, 9, 3)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "held.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "held.png").pixels, np.rot90(PIXELS, -1))


def test_arrays_in_0_to_1_are_the_pixels_that_they_stand_for() -> None:
    assert np.array_equal(read_picture(PIXELS / 255).pixels, PIXELS)
    assert np.array_equal(read_picture(PIXELS[:, :, 0]).pixels[:, :, 2], PIXELS[:, :, 0])
    for wrong in (PIXELS[:, :, :2], PIXELS.astype(np.int32), PIXELS * 1.0, np.full((2, 2, 3), np.nan), PIXELS[:0]):
        with pytest.raises(InvalidInput, match="pixels"):
            read_picture(wrong)


def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    huge = bytearray((tmp_path / "whole.png").read_bytes())
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    (tmp_path / "huge.png").write_bytes(bytes(huge))
    wide = bytearray(huge)
    wide[16:24] = struct.pack(">II", 11_000, 11_000)
    wide[29:33] = struct.pack(">I", zlib.crc32(bytes(wide[12:29])))
    (tmp_path / "wide.png").write_bytes(bytes(wide))
    for name, message in (
        ("cut.png", "cannot be decoded|is not a picture"), ("text.png", "is not a picture"), ("empty.png", "is empty"),
        ("page.eps", "is not a picture"), ("huge.png", "pixels"), ("wide.png", "11000 x 11000 pixels"),
    ):  # fmt: skip
        with pytest.raises(ImageUnreadable, match=message):
            read_picture(tmp_path / name)
    with pytest.raises(InputUnreadable, match="does not exist"):
        read_picture(tmp_path / "none.png")


def wanted(height: int, width: int, how: str, resample: str = "bicubic") -> ImageInput:
    return ImageInput(height, width, how, resample)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(60, 90), (91, 40), (7, 300), (224, 224), (33, 34)])
def test_cover_is_scaling_until_it_covers_and_taking_the_middle(size: tuple[int, int], resample: str) -> None:
    """As the extractors of CLIP and its relatives do it: scale the whole picture, then crop."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = size
    target = 24
    scaled = (target, target * width // height) if height <= width else (target * height // width, target)
    whole = Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling[resample.upper()])
    top, left = (scaled[0] - target) // 2, (scaled[1] - target) // 2
    cropped = np.asarray(whole, dtype=np.float32)[top : top + target, left : left + target].transpose(2, 0, 1) / 255
    have = fit(pixels, wanted(target, target, "cover", resample))
    assert have.shape == (3, target, target) and have.dtype == np.float32 and have.flags.c_contiguous
    assert np.abs(have - cropped).max() <= 1.01 / 255


def test_stretch_takes_all_of_the_picture() -> None:
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:, 10:] = 255
    have = fit(pixels, wanted(8, 8, "stretch"))
    assert have[:, :, :3].max() == 0 and have[:, :, 5:].min() == 1
    assert np.array_equal(fit(PIXELS, wanted(6, 9, "stretch")), PIXELS.transpose(2, 0, 1).astype(np.float32) / 255)


def test_a_picture_of_one_row_takes_no_more_memory_than_its_target() -> None:
    """Scaled as a whole before it is cropped, it would be 3 million pixels wide and as many bytes times 672."""
    import tracemalloc

    pixels = np.zeros((1, 100_000, 3), np.uint8)
    tracemalloc.start()
    assert fit(pixels, wanted(224, 224, "cover")).shape == (3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_without_pillow_pictures_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"edgealign\[image\]"):
        fit(PIXELS, wanted(4, 4, "cover"))
