"""Vary training images and standardize them, a batch at a time.

Everything runs where the images lie, so that a data set kept on the training device never leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quantspike.data.preparation import check_crop, standardize
from quantspike.params import Recipe


@dataclass(frozen=True)
class Draws:
    """The random choices for N images, separate from their use so that they can be repeated.

    Attributes:
        rows, columns: upper left corner of the crop, in pixels, int64 [N].
        flips: whether the image is mirrored left to right, bool [N].
        brightness: offset in grey levels, float32 [N].
        contrast: factor, float32 [N].
    """

    rows: Tensor
    columns: Tensor
    flips: Tensor
    brightness: Tensor
    contrast: Tensor

    def part(self, chosen: slice) -> Draws:
        """Return the choices for some of the images."""
        return Draws(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def draw(n: int, image_size: int, crop: int, recipe: Recipe, generator: torch.Generator) -> Draws:
    """Draw the choices for n images, on the generator's device.

    Settings that vary nothing draw all the same, so that settings can be compared on otherwise equal choices.

    Args:
        n: number of images.
        image_size: side of the stored images, in pixels.
        crop: side of the square that the network sees, in pixels.
        recipe: what is varied, and how far.
        generator: source of randomness.

    Raises:
        QuantspikeError: the crop is larger than the images.
    """
    check_crop(image_size, crop)
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator, device=device) * (high - low) + low

    margin = image_size - crop
    low, high = max(margin // 2 - recipe.shift, 0), min(margin // 2 + recipe.shift, margin)
    corners = torch.randint(low, high + 1, (2, n), generator=generator, device=device)
    flips = uniform(0.0, 1.0) < (0.5 if recipe.flip == "random" else 0.0)
    brightness = uniform(-recipe.brightness, recipe.brightness)
    contrast = uniform(1 - recipe.contrast, 1 + recipe.contrast)
    return Draws(corners[0], corners[1], flips, brightness, contrast)


def augment(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Return training images: random crop, flip, brightness, contrast about each channel's mean, standardization.

    Nothing is clipped on the way, so the standardization takes the brightness out again; it is part of the
    published protocol all the same.

    Args:
        images: uint8 [N, C, H, W].
        draws: the choices for these N images.
        crop: side of the square that the choices were drawn for, in pixels.

    Returns:
        float32 [N, C, crop, crop].
    """
    pixels = _windows(images, draws, crop).float()
    pixels += draws.brightness[:, None, None, None]
    means = pixels.mean(dim=(2, 3), keepdim=True)
    return standardize((pixels - means).mul_(draws.contrast[:, None, None, None]).add_(means))


def _windows(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Cut out the square of each image, mirrored where that was drawn: uint8 [N, C, crop, crop].

    A single look-up crops and mirrors: only the indices of the pixels have to be worked out.
    """
    n, channels, size, _ = images.shape
    side = torch.arange(crop, device=images.device)
    rows = draws.rows[:, None] + side
    columns = draws.columns[:, None] + torch.where(draws.flips[:, None], crop - 1 - side, side)
    indices = (rows[:, :, None] * size + columns[:, None, :]).reshape(n, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, indices).reshape(n, channels, crop, crop)
