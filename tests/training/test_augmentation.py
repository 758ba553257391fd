"""Crop, flip, brightness and contrast of training images: numbers computed by hand, a slow loop, and torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as torchvision

from conftest import PARAMS
from quantspike.data.preparation import center_crop, standardize, standardize_exactly
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.training.augmentation import Draws, augment, draw

PUBLISHED = (
    Params.model_validate(PARAMS)
    .profiles["tiny"]
    .recipe.model_copy(update={"flip": "random", "brightness": 63.0, "contrast": 0.8})
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, size: int, channels: int = 3, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (n, channels, size, size), dtype=torch.uint8, generator=generator())


def choices(n: int, **changes: Any) -> Draws:
    """Return draws that change nothing, apart from what is named."""
    zeros = torch.zeros(n, dtype=torch.int64)
    plain = {"rows": zeros, "columns": zeros, "flips": zeros.bool(), "brightness": zeros.float()}
    return Draws(**(plain | {"contrast": torch.ones(n)} | changes))


# Training images


def slow_augment(
    image: NDArray[np.float64], row: int, column: int, flip: bool, brightness: float, contrast: float, crop: int
) -> Tensor:
    """One image, pixel by pixel, in float64, up to the standardization."""
    channels = []
    for plane in image:
        square = [[plane[row + y, column + x] + brightness for x in range(crop)] for y in range(crop)]
        if flip:
            square = [line[::-1] for line in square]
        mean = math.fsum(value for line in square for value in line) / crop**2
        channels.append([[(value - mean) * contrast + mean for value in line] for line in square])
    return torch.tensor(channels).double()


@pytest.mark.parametrize(("size", "crop", "channels"), [(9, 6, 3), (8, 8, 1), (5, 1, 3), (7, 4, 2)])
def test_training_images_equal_those_of_a_loop_over_images_and_pixels(size: int, crop: int, channels: int) -> None:
    images = noise(40, size, channels)
    draws = draw(40, size, crop, PUBLISHED, generator())
    parts = zip(images.double().numpy(), *(values.tolist() for values in vars(draws).values()), strict=True)
    expected = standardize(torch.stack([slow_augment(*part, crop) for part in parts]))
    result = augment(images, draws, crop)
    assert (result.dtype, result.shape) == (torch.float32, (40, channels, crop, crop))
    torch.testing.assert_close(result, expected.float(), rtol=0, atol=2e-5)


def test_crop_and_flip_and_contrast_are_those_of_torchvision() -> None:
    # torchvision clips to the range of the pixels, so the images are dull enough never to reach its ends:
    # at most 1.8 x 40 grey levels from the mean of a channel, which lies between 100 and 140.
    images = noise(30, 8, low=100, high=141)
    draws = draw(30, 8, 5, PUBLISHED, generator())
    expected = []
    for image, row, column, flip, factor in zip(
        images, draws.rows, draws.columns, draws.flips, draws.contrast, strict=True
    ):
        square = torchvision.crop(image, int(row), int(column), 5, 5)
        square = torchvision.hflip(square) if flip else square
        # Each channel by itself, since torchvision takes one mean for a whole colour image.
        planes = [torchvision.adjust_contrast(plane[None] / 255, float(factor)) for plane in square]
        expected.append(torch.cat(planes) * 255)
    result = augment(images, draws, 5)
    torch.testing.assert_close(result, standardize(torch.stack(expected)), rtol=0, atol=1e-4)


def test_a_crop_starts_at_the_row_and_column_that_were_drawn() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    draws = choices(1, rows=torch.tensor([1]), columns=torch.tensor([3]))
    # Rows 1 and 2, columns 3 and 4: 8, 9, 13, 14. Mean 11, variance (9 + 4 + 4 + 9) / 4 = 6.5.
    expected = torch.tensor([[-3.0, -2.0], [2.0, 3.0]]) / math.sqrt(6.5)
    torch.testing.assert_close(augment(image, draws, 2)[0, 0], expected, rtol=0, atol=1e-6)


def test_a_flip_mirrors_left_to_right_and_only_where_it_was_drawn() -> None:
    image = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8)
    plain, mirrored = augment(image.repeat(2, 1, 1, 1), choices(2, flips=torch.tensor([False, True])), 2)
    # Mean 1.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25.
    expected = torch.tensor([[-1.5, -0.5], [0.5, 1.5]]) / math.sqrt(1.25)
    torch.testing.assert_close(plain[0], expected, rtol=0, atol=1e-6)
    assert torch.equal(mirrored, plain[:, :, [1, 0]])


def test_contrast_keeps_the_mean_of_each_channel_and_clips_nothing() -> None:
    # Channels 0 and 10, 100 and 110; a factor of 2 makes them -5 and 15, 95 and 115.
    image = torch.tensor([[[[0, 10]], [[100, 110]]]], dtype=torch.uint8).repeat(1, 1, 2, 1)
    result = augment(image, choices(1, contrast=torch.tensor([2.0])), 2)[0, :, 0]
    # Mean 55; variance (60^2 + 40^2 + 40^2 + 60^2) / 4 = 2600.
    expected = torch.tensor([[-60.0, -40.0], [40.0, 60.0]]) / math.sqrt(2600)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [-63.0, 63.0])
def test_brightness_is_not_clipped_so_standardization_removes_it(offset: float) -> None:
    images = noise(10, 6)
    brighter = augment(images, choices(10, brightness=torch.full((10,), offset)), 6)
    torch.testing.assert_close(brighter, standardize_exactly(images).float(), rtol=0, atol=1e-5)


def test_a_uniform_image_stays_small() -> None:
    images = torch.full((50, 3, 10, 10), 200, dtype=torch.uint8)
    result = augment(images, draw(50, 10, 8, PUBLISHED, generator()), 8)
    assert result.abs().max() < 1e-2  # rounding of 200 + offset in fp32, divided by the lower bound of the std


def test_images_augmented_in_parts_equal_those_augmented_at_once_and_no_input_changes() -> None:
    images = noise(10, 8)
    draws = draw(10, 8, 6, PUBLISHED, generator())
    before = [value.clone() for value in (images, *vars(draws).values())]
    whole = augment(images, draws, 6)
    parts = [slice(0, 4), slice(4, 9), slice(9, 10)]
    assert torch.equal(torch.cat([augment(images[part], draws.part(part), 6) for part in parts]), whole)
    for value, kept in zip((images, *vars(draws).values()), before, strict=True):
        assert torch.equal(value, kept)


# Draws


def test_draws_are_uniform_and_stay_within_their_bounds() -> None:
    n = 60_000
    draws = draw(n, 32, 24, PUBLISHED, generator())
    for corners in (draws.rows, draws.columns):
        counts = torch.bincount(corners, minlength=9)
        assert len(counts) == 9  # 0 to 8: the last one still fits
        assert (counts - n / 9).abs().max() < 5 * math.sqrt(n / 9 * 8 / 9)
    assert abs(draws.flips.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    for values, low, high in ((draws.brightness, -63, 63), (draws.contrast, 0.2, 1.8)):
        low, high = float(torch.tensor(low)), float(torch.tensor(high))
        assert low <= values.min() < low + (high - low) / 1000
        assert high - (high - low) / 1000 < values.max() <= high
        counts = torch.histc(values, bins=10, min=low, max=high)
        assert (counts - n / 10).abs().max() < 5 * math.sqrt(n / 10 * 9 / 10)


@pytest.mark.parametrize(
    ("size", "crop", "shift", "low", "high"),
    [
        (32, 24, 3, 1, 7),  # the central crop lies at 4
        (32, 24, 0, 4, 4),
        (32, 24, 4, 0, 8),
        (32, 24, 9, 0, 8),  # as far as the image reaches
        (33, 24, 3, 1, 7),  # 9 pixels are left over, and the central crop lies at 4
        (8, 8, 4, 0, 0),
    ],
)
def test_crops_lie_evenly_within_the_shift_of_the_center(size: int, crop: int, shift: int, low: int, high: int) -> None:
    draws = draw(5_000, size, crop, PUBLISHED.model_copy(update={"shift": shift}), generator())
    center = int(center_crop(torch.arange(size**2).reshape(1, 1, size, size), crop)[0, 0, 0, 0]) // size
    assert (low + high) / 2 == center
    for corners in (draws.rows, draws.columns):
        counts = torch.bincount(corners, minlength=size)
        assert counts[low : high + 1].min() > 0.8 * 5_000 / (high - low + 1)
        assert counts.sum() == counts[low : high + 1].sum()


def test_draws_are_independent_of_each_other() -> None:
    draws = draw(20_000, 32, 24, PUBLISHED, generator())
    correlations = torch.corrcoef(torch.stack([values.float() for values in vars(draws).values()]))
    assert (correlations - torch.eye(5)).abs().max() < 5 / math.sqrt(20_000)


def test_the_generator_alone_decides_the_draws() -> None:
    before = torch.get_rng_state()
    source = generator(4)
    first, next_one = (draw(50, 32, 24, PUBLISHED, source) for _ in range(2))
    again, other = (draw(50, 32, 24, PUBLISHED, generator(seed)) for seed in (4, 5))
    for name, values in vars(first).items():
        assert torch.equal(values, getattr(again, name))
        assert not torch.equal(values, getattr(other, name))
        assert not torch.equal(values, getattr(next_one, name))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "setting", "draws", "value"),
    [("flip", "none", "flips", 0), ("brightness", 0.0, "brightness", 0), ("contrast", 0.0, "contrast", 1)],
)
def test_a_setting_that_varies_nothing_leaves_all_other_choices_alone(
    name: str, setting: Any, draws: str, value: float
) -> None:
    streams = generator(3), generator(3)
    on = draw(500, 32, 24, PUBLISHED, streams[0])
    off = draw(500, 32, 24, PUBLISHED.model_copy(update={name: setting}), streams[1])
    assert {other for other, values in vars(on).items() if not torch.equal(values, getattr(off, other))} == {draws}
    assert (getattr(off, draws) == value).all()
    assert torch.equal(streams[0].get_state(), streams[1].get_state())  # what is drawn next stays the same, too


def test_a_crop_beyond_the_image_is_refused_before_anything_is_drawn() -> None:
    source = generator()
    before = source.get_state()
    with pytest.raises(QuantspikeError, match=r"data\.crop is 9, but the images are only 8 x 8"):
        draw(3, 8, 9, PUBLISHED, source)
    assert torch.equal(source.get_state(), before)
