"""Images as the network sees them: cropped, flipped, re-lit and standardized, a batch at a time.

Everything runs where the images lie, so that a data set kept on the training device never leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quantspike.errors import QuantspikeError


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the defaults are the published protocol.

    Attributes:
        crop: side of the square that the network sees, in pixels.
        flip: whether half of the images are mirrored left to right.
        padding: pixels reflected at each border before the square is cut out.
        brightness: the offset is uniform from minus to plus this, in grey levels.
        contrast: the factor is uniform from 1 minus to 1 plus this.
        cutout: side of a square set to the image's mean, in pixels; 0 for none (DeVries and Taylor, 2017).
    """

    crop: int
    flip: bool = True
    padding: int = 0
    brightness: float = 63.0
    contrast: float = 0.8
    cutout: int = 0


@dataclass(frozen=True)
class Draws:
    """The random choices for N images, apart from their use so that they can be repeated.

    Attributes:
        rows, columns: upper left corner of the crop in the padded image, in pixels, int64 [N].
        flips: whether the image is mirrored left to right, bool [N].
        brightness: offset in grey levels, float32 [N].
        contrast: factor, float32 [N].
        holes: row and column of the upper left corner of the cut-out square in the crop, int64 [2, N].
    """

    rows: Tensor
    columns: Tensor
    flips: Tensor
    brightness: Tensor
    contrast: Tensor
    holes: Tensor

    def part(self, chosen: slice) -> Draws:
        """The choices for some of the images."""
        parts = {field.name: getattr(self, field.name)[..., chosen] for field in fields(self)}
        return Draws(**parts)


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


def draw(n: int, image_size: int, settings: Augmentation, generator: torch.Generator) -> Draws:
    """Draws the choices for n images of the given size, on the generator's device.

    What is switched off draws all the same, so that settings can be compared on otherwise equal choices.

    Args:
        n: number of images.
        image_size: side of the stored images, in pixels.
        settings: what is varied, and how far.
        generator: source of randomness.

    Raises:
        QuantspikeError: the crop is larger than the images, or more than a whole image would be reflected.
    """
    check_crop(image_size, settings.crop)
    if settings.padding >= image_size:
        raise QuantspikeError(
            f"train.padding is {settings.padding}, but images of {image_size} x {image_size} pixels have only "
            f"{image_size - 1} to reflect at a border"
        )
    if settings.cutout > settings.crop:
        raise QuantspikeError(f"train.cutout is {settings.cutout}, but the network sees only {settings.crop} pixels")
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator, device=device) * (high - low) + low

    places = image_size + 2 * settings.padding - settings.crop + 1
    corners = torch.randint(places, (2, n), generator=generator, device=device)
    flips = uniform(0.0, 1.0) < (0.5 if settings.flip else 0.0)
    brightness = uniform(-settings.brightness, settings.brightness)
    contrast = uniform(1 - settings.contrast, 1 + settings.contrast)
    holes = torch.randint(settings.crop - settings.cutout + 1, (2, n), generator=generator, device=device)
    return Draws(corners[0], corners[1], flips, brightness, contrast, holes)


def augment(images: Tensor, draws: Draws, settings: Augmentation) -> Tensor:
    """Training images: random crop, flip, brightness, contrast about each channel's mean, standardization, cutout.

    Nothing is clipped on the way, so the standardization takes the brightness out again; it is part of the
    published protocol all the same. What is cut out becomes the image's mean, which is 0 by then.

    Args:
        images: uint8 [N, C, H, W].
        draws: the choices for these N images.
        settings: those the choices were drawn for.

    Returns:
        float32 [N, C, crop, crop].
    """
    pixels = _windows(images, draws, settings).float()
    pixels += draws.brightness[:, None, None, None]
    means = pixels.mean(dim=(2, 3), keepdim=True)
    result = standardize((pixels - means).mul_(draws.contrast[:, None, None, None]).add_(means))
    if settings.cutout:
        side = torch.arange(settings.crop, device=images.device)
        rows, columns = ((side >= hole[:, None]) & (side < hole[:, None] + settings.cutout) for hole in draws.holes)
        result.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
    return result


def _windows(images: Tensor, draws: Draws, settings: Augmentation) -> Tensor:
    """The square of each image, mirrored where that was drawn: uint8 [N, C, crop, crop].

    A single look-up crops, reflects and mirrors: only the places of the pixels have to be worked out.
    """
    n, channels, size, _ = images.shape
    side = torch.arange(settings.crop, device=images.device)
    across = torch.where(draws.flips[:, None], settings.crop - 1 - side, side)
    rows = _reflected(draws.rows[:, None] + side - settings.padding, size)
    columns = _reflected(draws.columns[:, None] + across - settings.padding, size)
    places = (rows[:, :, None] * size + columns[:, None, :]).reshape(n, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, places).reshape(n, channels, settings.crop, settings.crop)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places beyond either end, mirrored back at the outermost pixel, which is not repeated."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


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
