"""Images as the network sees them: cropped, flipped, re-lit and standardized, a batch at a time.

Everything runs where the images lie, so that a data set kept on the training device never leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantspike.errors import QuantspikeError

BRIGHTNESS = 63.0
CONTRAST = (0.2, 1.8)


@dataclass(frozen=True)
class Draws:
    """The random choices for a batch of N images, apart from their use so that they can be repeated.

    Attributes:
        rows, columns: upper left corner of the crop in pixels, int64 [N].
        flips: whether the image is mirrored left to right, bool [N].
        brightness: offset in grey levels, float32 [N].
        contrast: factor, float32 [N].
    """

    rows: Tensor
    columns: Tensor
    flips: Tensor
    brightness: Tensor
    contrast: Tensor


def check_crop(image_size: int, crop: int) -> None:
    """Makes sure that the square the network sees fits into the images, both sides in pixels.

    Raises:
        QuantspikeError: it does not.
    """
    if crop > image_size:
        raise QuantspikeError(
            f"data.crop is {crop}, but the images are only {image_size} x {image_size} pixels: "
            f"set it to {image_size} or less"
        )


def draw(n: int, image_size: int, crop: int, *, flip: bool, generator: torch.Generator) -> Draws:
    """Draws the choices for n images of the given size, on the generator's device.

    Args:
        n: number of images.
        image_size: side of the stored images, in pixels.
        crop: side of the square that is cut out, in pixels.
        flip: whether half of the images are mirrored.
        generator: source of randomness.

    Raises:
        QuantspikeError: the crop is larger than the images.
    """
    check_crop(image_size, crop)
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator, device=device) * (high - low) + low

    corners = torch.randint(image_size - crop + 1, (2, n), generator=generator, device=device)
    flips = torch.rand(n, generator=generator, device=device) < (0.5 if flip else 0.0)
    return Draws(corners[0], corners[1], flips, uniform(-BRIGHTNESS, BRIGHTNESS), uniform(*CONTRAST))


def augment(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Training images: random crop, flip, brightness, contrast about each channel's mean, standardization.

    Nothing is clipped on the way, so the standardization takes the brightness out again; it is part of the
    published protocol all the same.

    Args:
        images: uint8 [N, C, H, W].
        draws: the choices for these N images.
        crop: side of the square that is cut out, in pixels.

    Returns:
        float32 [N, C, crop, crop].
    """
    windows = images.unfold(2, crop, 1).unfold(3, crop, 1)
    n = torch.arange(len(images), device=images.device)
    pixels = windows[n, :, draws.rows, draws.columns].float()
    pixels = torch.where(draws.flips[:, None, None, None], pixels.flip(3), pixels)
    pixels = pixels + draws.brightness[:, None, None, None]
    means = pixels.mean(dim=(2, 3), keepdim=True)
    return standardize((pixels - means) * draws.contrast[:, None, None, None] + means)


def center_crop(images: Tensor, crop: int) -> Tensor:
    """Cuts the central square out of [N, C, H, W]; of an odd remainder the larger part is cut below and right.

    Raises:
        QuantspikeError: the crop is larger than the images.
    """
    check_crop(min(images.shape[2:]), crop)
    row, column = (images.shape[2] - crop) // 2, (images.shape[3] - crop) // 2
    return images[:, :, row : row + crop, column : column + crop]


def central_images(images: Tensor, crop: int) -> Tensor:
    """Test images: central crop, standardization. uint8 [N, C, H, W] -> float32 [N, C, crop, crop]."""
    return standardize(center_crop(images, crop).float())


def standardize(pixels: Tensor) -> Tensor:
    """(x - mean) / max(std, 1/sqrt(n)) over all n values of an image, std with ddof 0.

    The floor keeps a uniform image finite.

    Args:
        pixels: float [N, C, H, W].
    """
    n = pixels[0].numel()
    std, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
    return (pixels - mean) / std.clamp(min=n**-0.5)
