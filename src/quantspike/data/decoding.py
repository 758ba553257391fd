"""Decode image files as viewers show them, and refuse by name what 8-bit grey or RGB pixels cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from quantspike.errors import QuantspikeError
from quantspike.files import reason

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")  # others have modes and depths that no 8-bit RGB can hold
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_MAX_SIDE = 4096  # pixels; beyond it, a file is a mistake or an attack on the memory


def decode_all(paths: list[str]) -> NDArray[np.uint8]:
    """Decode files to [N, C, H, W], with one channel if all are grey, else three.

    Images are as viewers show them, turned as their EXIF tags say; colour profiles and gamma are ignored.

    Raises:
        QuantspikeError: a file does not decode, or not to square 8-bit pixels of the size of the first.
    """
    images: list[NDArray[np.uint8]] = []
    for path in tqdm(paths, desc="decoding", unit="image", disable=None):
        images.append(_decode(path, images[0].shape[2] if images else None))
    channels = max(len(image) for image in images)
    return np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])


def _decode(path: str, side: int | None) -> NDArray[np.uint8]:
    """Decode a file to [1, H, W] if its mode is grey, else to RGB [3, H, W]; without `side`, it is the first."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            expected = side or min(width, _MAX_SIDE)
            if (width, height) != (expected, expected):  # checked before pixels take memory
                raise QuantspikeError(
                    f"{path} has {width} x {height} pixels, expected {expected} x {expected}: images must be square "
                    f"and all of one size, at most {_MAX_SIDE} x {_MAX_SIDE}"
                )
            if problem := _problem(image):
                raise QuantspikeError(
                    f"{path} has {problem}: save it as an 8-bit PNG, grey or RGB, without transparency"
                )
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            return np.atleast_3d(np.asarray(ImageOps.exif_transpose(image).convert(mode))).transpose(2, 0, 1)
    except (QuantspikeError, MemoryError):
        raise
    except Exception as error:  # decoders fail on hostile content in more ways than they document
        raise QuantspikeError(
            f"{path} does not decode: {reason(error)}. Images are {', '.join(_FORMATS)}: remove it, or save it as PNG"
        ) from error


def _problem(image: ImageFile.ImageFile) -> str | None:
    """Return what an image has that 8-bit grey or RGB pixels do not show, or None."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        return f"{frames} frames"
    if any(_is_deep(tile.args) for tile in image.tile):
        return "more than 8 bits per value"
    if image.mode not in _MODES:
        return f"colours of mode {image.mode}"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "transparent pixels"
    return None


def _is_deep(decoder_arguments: tuple[Any, ...] | str | None) -> bool:
    """Return whether values have more than 8 bits, which Pillow cuts to 8 in silence if there are colours."""
    match decoder_arguments:
        case (str(), int(largest)):  # PPM whose largest value is not 255
            return largest > 255
        case str(raw_mode):  # PNG
            return raw_mode.endswith(";16B")
    return False
