"""Cropping, flipping, re-lighting and standardizing, against a slow loop and against torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as torchvision

from quantspike import augmentation
from quantspike.augmentation import Draws, augment, center_crop, check_crop, draw, standardize
from quantspike.errors import QuantspikeError

Image = NDArray[np.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, size: int, channels: int = 3, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (n, channels, size, size), dtype=torch.uint8, generator=generator(seed))


def choices(n: int, **changes: Any) -> Draws:
    """Draws that change nothing, apart from what is named."""
    zeros = torch.zeros(n, dtype=torch.int64)
    plain = {"rows": zeros, "columns": zeros, "flips": zeros.bool(), "brightness": zeros.float()}
    return Draws(**(plain | {"contrast": torch.ones(n)} | changes))


# One image after the other, value by value, in float64.


def slow_standardize(image: Image) -> Image:
    values = [float(value) for value in image.ravel()]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return (image - mean) / max(math.sqrt(variance), 1 / math.sqrt(len(values)))


def slow_augment(
    image: Image, row: int, column: int, flip: bool, brightness: float, contrast: float, crop: int
) -> Image:
    channels = []
    for plane in image:
        square = [[plane[row + y, column + x] + brightness for x in range(crop)] for y in range(crop)]
        if flip:
            square = [line[::-1] for line in square]
        mean = math.fsum(value for line in square for value in line) / crop**2
        channels.append([[(value - mean) * contrast + mean for value in line] for line in square])
    return slow_standardize(np.array(channels))


def slow(images: Tensor, draws: Draws, crop: int) -> Tensor:
    parts = zip(
        images.double().numpy(),
        draws.rows.tolist(),
        draws.columns.tolist(),
        draws.flips.tolist(),
        draws.brightness.tolist(),
        draws.contrast.tolist(),
        strict=True,
    )
    return torch.from_numpy(np.stack([slow_augment(*part, crop) for part in parts])).float()


@pytest.mark.parametrize(("size", "crop", "channels"), [(9, 6, 3), (8, 8, 1), (5, 1, 3), (7, 4, 2)])
def test_training_images_are_those_of_a_loop_over_images_and_pixels(size: int, crop: int, channels: int) -> None:
    images = noise(40, size, channels)
    draws = draw(40, size, crop, flip=True, generator=generator())
    result = augment(images, draws, crop)
    assert (result.dtype, result.shape) == (torch.float32, (40, channels, crop, crop))
    torch.testing.assert_close(result, slow(images, draws, crop), rtol=0, atol=2e-5)


def test_crop_and_flip_and_contrast_are_those_of_torchvision() -> None:
    # torchvision clips to the range of the pixels, so the images are dull enough never to reach its ends:
    # at most 1.8 x 40 grey levels from the mean of a channel, which lies between 100 and 140.
    images = noise(30, 8, low=100, high=141)
    draws = draw(30, 8, 5, flip=True, generator=generator())
    expected = []
    for image, row, column, flip, factor in zip(
        images, draws.rows, draws.columns, draws.flips, draws.contrast, strict=True
    ):
        square = torchvision.crop(image, int(row), int(column), 5, 5)
        square = torchvision.hflip(square) if flip else square
        # Each channel by itself, since torchvision takes one mean for a whole colour image.
        planes = [torchvision.adjust_contrast(plane[None] / 255, float(factor)) for plane in square]
        expected.append(torch.cat(planes) * 255)
    torch.testing.assert_close(augment(images, draws, 5), standardize(torch.stack(expected)), rtol=0, atol=1e-4)


def test_a_crop_starts_at_the_row_and_column_that_were_drawn() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    draws = choices(1, rows=torch.tensor([1]), columns=torch.tensor([3]))
    # Rows 1 and 2, columns 3 and 4: 8, 9, 13, 14. Mean 11, variance (9 + 4 + 4 + 9) / 4 = 6.5.
    expected = torch.tensor([[-3.0, -2.0], [2.0, 3.0]]) / math.sqrt(6.5)
    torch.testing.assert_close(augment(image, draws, 2)[0, 0], expected, rtol=0, atol=1e-6)


def test_a_flip_mirrors_left_to_right_and_only_where_it_was_drawn() -> None:
    image = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8)
    plain, mirrored = augment(image.repeat(2, 1, 1, 1), choices(2, flips=torch.tensor([False, True])), 2)
    assert torch.equal(mirrored, plain[:, :, [1, 0]])


def test_contrast_keeps_the_mean_of_each_channel() -> None:
    # Channels 0 and 10, 100 and 110; a factor of 2 makes them -5 and 15, 95 and 115: nothing is clipped.
    image = torch.tensor([[[[0, 10]], [[100, 110]]]], dtype=torch.uint8).repeat(1, 1, 2, 1)
    result = augment(image, choices(1, contrast=torch.tensor([2.0])), 2)[0, :, 0]
    # Mean 55; variance (60^2 + 40^2 + 40^2 + 60^2) / 4 = 2600.
    expected = torch.tensor([[-60.0, -40.0], [40.0, 60.0]]) / math.sqrt(2600)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [-63.0, 63.0])
def test_brightness_is_not_clipped_so_standardization_takes_it_out_again(offset: float) -> None:
    images = noise(10, 6)
    brighter = augment(images, choices(10, brightness=torch.full((10,), offset)), 6)
    torch.testing.assert_close(brighter, augment(images, choices(10), 6), rtol=0, atol=1e-5)


def test_every_image_gets_its_own_offset_and_factor() -> None:
    draws = draw(1000, 8, 6, flip=True, generator=generator())
    assert draws.brightness.shape == draws.contrast.shape == draws.flips.shape == draws.rows.shape == (1000,)
    assert len(draws.brightness.unique()) > 990
    assert len(draws.contrast.unique()) > 990


# Standardization


def test_standardization_gives_mean_0_and_std_1_over_the_whole_image() -> None:
    pixels = noise(20, 7).float()
    result = standardize(pixels).double().flatten(1)
    torch.testing.assert_close(result.mean(1), torch.zeros(20).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.std(1, correction=0), torch.ones(20).double(), rtol=0, atol=1e-6)
    expected = np.stack([slow_standardize(image) for image in pixels.double().numpy()])
    torch.testing.assert_close(standardize(pixels), torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_uniform_image_becomes_0(level: int) -> None:
    image = torch.full((1, 3, 24, 24), level, dtype=torch.uint8)
    assert torch.equal(augmentation.central_images(image, 24), torch.zeros(1, 3, 24, 24))


def test_a_nearly_uniform_image_is_divided_by_the_floor() -> None:
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 0, 0] = 1
    # n = 16: mean 1/16, std sqrt(15) / 16 = 0.242, which is below 1 / sqrt(16) = 0.25.
    result = augmentation.central_images(image, 4)[0, 0]
    assert result[0, 0] == (1 - 1 / 16) / 0.25  # 3.75
    assert result[1, 1] == -1 / 16 / 0.25  # -0.25


def test_a_uniform_image_stays_small_under_augmentation() -> None:
    images = torch.full((50, 3, 10, 10), 200, dtype=torch.uint8)
    result = augment(images, draw(50, 10, 8, flip=True, generator=generator()), 8)
    assert result.abs().max() < 1e-2  # rounding of 200 + offset in fp32, divided by the floor


# Test images


@pytest.mark.parametrize(("size", "crop"), [(32, 24), (8, 8), (7, 3)])
def test_the_central_crop_is_that_of_torchvision_where_the_rest_is_even(size: int, crop: int) -> None:
    images = noise(3, size)
    assert torch.equal(center_crop(images, crop), torchvision.center_crop(images, [crop, crop]))


def test_of_an_odd_rest_the_larger_part_is_cut_below_and_right() -> None:
    image = torch.arange(25).reshape(1, 1, 5, 5)
    assert center_crop(image, 2)[0, 0].tolist() == [[6, 7], [11, 12]]  # one row above, two below


def test_test_images_are_cropped_and_standardized_and_nothing_else() -> None:
    images = noise(5, 9)
    expected = np.stack([slow_standardize(image[:, 2:7, 2:7]) for image in images.double().numpy()])
    result = augmentation.central_images(images, 5)
    torch.testing.assert_close(result, torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop", [1, 31, 32])
def test_a_crop_up_to_the_whole_image_fits(crop: int) -> None:
    check_crop(32, crop)


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(QuantspikeError, match=r"data\.crop is 33, but the images are only 32 x 32 .* set it to 32"):
        check_crop(32, 33)


# Draws


def test_draws_are_uniform_and_stay_within_their_bounds() -> None:
    n = 60_000
    draws = draw(n, 32, 24, flip=True, generator=generator())
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


def test_the_choices_do_not_hang_together() -> None:
    draws = draw(20_000, 32, 24, flip=True, generator=generator())
    correlations = torch.corrcoef(torch.stack([value.float() for value in vars(draws).values()]))
    assert (correlations - torch.eye(5)).abs().max() < 5 / math.sqrt(20_000)


def test_the_same_generator_gives_the_same_draws_and_another_seed_others() -> None:
    first, again, other = (draw(50, 32, 24, flip=True, generator=generator(seed)) for seed in (4, 4, 5))
    for name, values in vars(first).items():
        assert torch.equal(values, getattr(again, name))
        assert not torch.equal(values, getattr(other, name))


def test_a_second_draw_from_one_generator_is_another() -> None:
    source = generator()
    first, second = (draw(50, 32, 24, flip=True, generator=source) for _ in range(2))
    assert not torch.equal(first.contrast, second.contrast)


def test_without_flipping_nothing_else_changes() -> None:
    plain, mirrored = (draw(500, 32, 24, flip=flip, generator=generator()) for flip in (False, True))
    assert not plain.flips.any()
    for name in ("rows", "columns", "brightness", "contrast"):
        assert torch.equal(getattr(plain, name), getattr(mirrored, name))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(5, 32, 24, flip=True, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("crop", [4, 6])
def test_no_input_is_changed(crop: int) -> None:
    images = noise(10, 6)
    draws = draw(10, 6, crop, flip=True, generator=generator())
    before = [value.clone() for value in (images, *vars(draws).values())]
    augment(images, draws, crop)
    augmentation.central_images(images, crop)
    pixels = images.float()
    standardize(pixels)
    for value, kept in zip((images, *vars(draws).values()), before, strict=True):
        assert torch.equal(value, kept)
    assert torch.equal(pixels, images.float())


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    images = noise(6, 8)
    draws = draw(6, 8, 6, flip=True, generator=generator())
    alone = Draws(**{name: values[2:3] for name, values in vars(draws).items()})
    assert torch.equal(augment(images, draws, 6)[2:3], augment(images[2:3], alone, 6))
