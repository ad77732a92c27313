"""Picture files and arrays -> RGB pixels -> what an image encoder sees. Needs pillow: the extra `image` brings it."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgealign.audio import check_readable
from edgealign.errors import ImageUnreadable, InvalidInput, MissingExtra
from edgealign.inputs import ImageInput

EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)  # what a folder is searched for; a file that is named is read whatever its name
# Formats that pillow decodes by itself: others may start programs or follow references.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Picture:
    """name as it appears in reports; pixels uint8 [height, width, 3], RGB."""

    name: str
    pixels: np.ndarray

    @cached_property
    def sha256(self) -> str:
        """Hex, over the size and the pixels: the same picture in PNG and BMP is the same sample."""
        height, width, _ = self.pixels.shape
        return hashlib.sha256(f"{width} x {height} px\n".encode() + self.pixels.tobytes()).hexdigest()


def read_picture(picture: str | os.PathLike | np.ndarray) -> Picture:
    """A picture from a file, turned upright as its EXIF says, on white where it is transparent; or from an array.

    array    [height, width], [height, width, 1], 3 or 4 channels; uint8, or floating point in [0, 1]
    raises   InputUnreadable and ImageUnreadable for what is no picture, InvalidInput for an array of another form
    """
    if isinstance(picture, np.ndarray):
        return Picture("pixels", _rgb_of(picture))
    path = os.fspath(picture)
    check_readable(path, ImageUnreadable)
    image_module, image_ops = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd metadata, which changes no pixel
            with image_module.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageUnreadable(
                        f"'{path}' has {image.width} x {image.height} pixels: at most {MAX_PIXELS // 10**6} million "
                        f"are read, scale it down"
                    )
                upright = image_ops.exif_transpose(image)
                if upright.mode.startswith(("I", "F")):
                    upright = _eight_bits(upright)
                if upright.has_transparency_data:
                    layer = upright.convert("RGBA")
                    upright = image_module.alpha_composite(image_module.new("RGBA", layer.size, "white"), layer)
                return Picture(path, np.array(upright.convert("RGB")))
    except image_module.DecompressionBombError:
        raise ImageUnreadable(f"'{path}' has more pixels than can be read: scale it down") from None
    except image_module.UnidentifiedImageError:
        raise ImageUnreadable(f"'{path}' is not a picture that can be read: PNG, JPEG or WebP is expected") from None
    except ImageUnreadable:
        raise
    except Exception as error:  # decoders raise a dozen unrelated types on damaged files
        raise ImageUnreadable(f"'{path}' cannot be decoded ({error}): save it again as PNG or JPEG") from None


def fit(pixels: np.ndarray, wanted: ImageInput) -> np.ndarray:
    """Pixels uint8 [height, width, 3] as the encoder sees them: float32 [3, height_px, width_px] in [0, 1].

    cover   scaled by the larger of the two ratios, the other side rounded down; the middle is used, an odd rest is left
            at the right and the bottom
    """
    image_module, _ = _pillow()
    height, width, _ = pixels.shape
    box = (0.0, 0.0, float(width), float(height))
    if wanted.fit == "cover":
        scaled_width, scaled_height = _covering(width, height, wanted.width_px, wanted.height_px)
        left, top = (scaled_width - wanted.width_px) // 2, (scaled_height - wanted.height_px) // 2
        x_step, y_step = width / scaled_width, height / scaled_height
        box = (left * x_step, top * y_step, (left + wanted.width_px) * x_step, (top + wanted.height_px) * y_step)
        box = (box[0], box[1], min(box[2], width), min(box[3], height))
    resample = image_module.Resampling[wanted.resample.upper()]
    scaled = image_module.fromarray(pixels).resize((wanted.width_px, wanted.height_px), resample, box=box)
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))


def _covering(width: int, height: int, least_width: int, least_height: int) -> tuple[int, int]:
    if least_width * height >= least_height * width:
        return least_width, max(least_height, math.floor(height * least_width / width))
    return max(least_width, math.floor(width * least_height / height)), least_height


def _rgb_of(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not 1 <= array.size // array.shape[2] <= MAX_PIXELS:
        raise InvalidInput(f"pixels have the shape {list(array.shape)}: expected [height, width, 3]")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InvalidInput("pixels are floating point beyond 0 to 1: scale them, or give uint8")
        array = np.floor(array * 255 + 0.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InvalidInput(f"pixels are {array.dtype}: expected uint8, or floating point in [0, 1]")
    if array.shape[2] == 4:
        image_module, _ = _pillow()
        layer = image_module.fromarray(array)
        return np.array(
            image_module.alpha_composite(image_module.new("RGBA", layer.size, "white"), layer).convert("RGB")
        )
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _eight_bits(image: Any) -> Any:
    """A picture of 16 or 32 bits per value, which pillow would clip instead of scale."""
    image_module, _ = _pillow()
    values = np.asarray(image, dtype=np.float64)
    highest = 65535.0 if image.mode.startswith("I") else 1.0
    return image_module.fromarray(np.clip(np.rint(values / highest * 255), 0, 255).astype(np.uint8))


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("pictures need pillow, which is not installed: pip install 'edgealign[image]'") from None
    return Image, ImageOps
