"""Test images as a network sees them: the central crop, standardized, in floating point or exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from quantspike.errors import QuantspikeError


def check_crop(image_size: int, crop: int) -> None:
    """Check that the crop fits into the images; both sides are in pixels.

    Raises:
        QuantspikeError: the crop is larger than the images.
    """
    if crop > image_size:
        raise QuantspikeError(
            f"data.crop is {crop}, but the images are only {image_size} x {image_size} pixels: "
            f"set it to {image_size} or less"
        )


def center_crop(images: Tensor, crop: int) -> Tensor:
    """Return the central square of images [N, C, H, W]; an odd border is one pixel wider below and on the right.

    Raises:
        QuantspikeError: the crop is larger than the images.
    """
    check_crop(min(images.shape[2:]), crop)
    row, column = (images.shape[2] - crop) // 2, (images.shape[3] - crop) // 2
    return images[:, :, row : row + crop, column : column + crop]


def central_images(images: Tensor, crop: int) -> Tensor:
    """Return standardized central crops: uint8 [N, C, H, W] -> float32 [N, C, crop, crop]."""
    return standardize(center_crop(images, crop).float())


def standardize(pixels: Tensor) -> Tensor:
    """Return (x - mean) / max(std, 1/sqrt(n)) over all n values of an image, std with ddof 0.

    The lower bound keeps a uniform image finite.

    Args:
        pixels: float [N, C, H, W].
    """
    n = pixels[0].numel()
    std, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
    return (pixels - mean) / std.clamp(min=n**-0.5)


def standardize_exactly(pixels: Tensor) -> Tensor:
    """Return the same as `standardize` from exact integer sums: uint8 [N, C, H, W] -> float64.

    With S and Q the sums of the pixels and of their squares, numerator and denominator times n are
    (n x - S) / sqrt(max(n Q - S^2, n)): integers up to one square root and one division.
    """
    values = pixels.long()
    n = values[0].numel()
    total = values.sum(dim=(1, 2, 3), keepdim=True)
    squares = values.square().sum(dim=(1, 2, 3), keepdim=True)
    radicand = (n * squares - total.square()).clamp(min=n)
    return (n * values - total).double() / radicand.double().sqrt()
