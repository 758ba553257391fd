"""Cropping, flipping, re-lighting, standardizing and blanking, against a slow loop and against torchvision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as torchvision

from quantspike import augmentation
from quantspike.augmentation import Augmentation, Draws, augment, center_crop, check_crop, draw, standardize
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
    return Draws(**(plain | {"contrast": torch.ones(n), "holes": torch.stack([zeros, zeros])} | changes))


# One image after the other, value by value, in float64.


def slow_standardize(image: Image) -> Image:
    values = [float(value) for value in image.ravel()]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return (image - mean) / max(math.sqrt(variance), 1 / math.sqrt(len(values)))


def slow_reflect(place: int, size: int) -> int:
    """Walks off the end and back: the outermost pixel is passed once."""
    while not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place


def slow_augment(
    image: Image,
    row: int,
    column: int,
    flip: bool,
    brightness: float,
    contrast: float,
    hole: tuple[int, int],
    settings: Augmentation,
) -> Image:
    channels, crop, size = [], settings.crop, image.shape[1]
    for plane in image:
        ys, xs = ([slow_reflect(start + i - settings.padding, size) for i in range(crop)] for start in (row, column))
        square = [[plane[y, x] + brightness for x in xs] for y in ys]
        if flip:
            square = [line[::-1] for line in square]
        mean = math.fsum(value for line in square for value in line) / crop**2
        channels.append([[(value - mean) * contrast + mean for value in line] for line in square])
    result = slow_standardize(np.array(channels))
    for y in range(settings.cutout):
        for x in range(settings.cutout):
            result[:, hole[0] + y, hole[1] + x] = 0.0
    return result


def slow(images: Tensor, draws: Draws, settings: Augmentation) -> Tensor:
    parts = zip(
        images.double().numpy(),
        draws.rows.tolist(),
        draws.columns.tolist(),
        draws.flips.tolist(),
        draws.brightness.tolist(),
        draws.contrast.tolist(),
        draws.holes.T.tolist(),
        strict=True,
    )
    return torch.from_numpy(np.stack([slow_augment(*part, settings) for part in parts])).float()


@pytest.mark.parametrize(("size", "crop", "channels"), [(9, 6, 3), (8, 8, 1), (5, 1, 3), (7, 4, 2)])
@pytest.mark.parametrize("extra", [{}, {"padding": 3}, {"cutout": 1}, {"padding": 4, "cutout": "crop"}])
def test_training_images_are_those_of_a_loop_over_images_and_pixels(
    size: int, crop: int, channels: int, extra: dict[str, Any]
) -> None:
    images = noise(40, size, channels)
    settings = Augmentation(crop, **{name: crop if value == "crop" else value for name, value in extra.items()})
    draws = draw(40, size, settings, generator())
    result = augment(images, draws, settings)
    assert (result.dtype, result.shape) == (torch.float32, (40, channels, crop, crop))
    torch.testing.assert_close(result, slow(images, draws, settings), rtol=0, atol=2e-5)


def test_crop_and_flip_and_contrast_are_those_of_torchvision() -> None:
    # torchvision clips to the range of the pixels, so the images are dull enough never to reach its ends:
    # at most 1.8 x 40 grey levels from the mean of a channel, which lies between 100 and 140.
    images = noise(30, 8, low=100, high=141)
    draws = draw(30, 8, Augmentation(5), generator())
    expected = []
    for image, row, column, flip, factor in zip(
        images, draws.rows, draws.columns, draws.flips, draws.contrast, strict=True
    ):
        square = torchvision.crop(image, int(row), int(column), 5, 5)
        square = torchvision.hflip(square) if flip else square
        # Each channel by itself, since torchvision takes one mean for a whole colour image.
        planes = [torchvision.adjust_contrast(plane[None] / 255, float(factor)) for plane in square]
        expected.append(torch.cat(planes) * 255)
    torch.testing.assert_close(
        augment(images, draws, Augmentation(5)), standardize(torch.stack(expected)), rtol=0, atol=1e-4
    )


def test_a_crop_starts_at_the_row_and_column_that_were_drawn() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    draws = choices(1, rows=torch.tensor([1]), columns=torch.tensor([3]))
    # Rows 1 and 2, columns 3 and 4: 8, 9, 13, 14. Mean 11, variance (9 + 4 + 4 + 9) / 4 = 6.5.
    expected = torch.tensor([[-3.0, -2.0], [2.0, 3.0]]) / math.sqrt(6.5)
    torch.testing.assert_close(augment(image, draws, Augmentation(2))[0, 0], expected, rtol=0, atol=1e-6)


def test_a_flip_mirrors_left_to_right_and_only_where_it_was_drawn() -> None:
    image = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8)
    draws = choices(2, flips=torch.tensor([False, True]))
    plain, mirrored = augment(image.repeat(2, 1, 1, 1), draws, Augmentation(2))
    assert torch.equal(mirrored, plain[:, :, [1, 0]])


def test_contrast_keeps_the_mean_of_each_channel() -> None:
    # Channels 0 and 10, 100 and 110; a factor of 2 makes them -5 and 15, 95 and 115: nothing is clipped.
    image = torch.tensor([[[[0, 10]], [[100, 110]]]], dtype=torch.uint8).repeat(1, 1, 2, 1)
    result = augment(image, choices(1, contrast=torch.tensor([2.0])), Augmentation(2))[0, :, 0]
    # Mean 55; variance (60^2 + 40^2 + 40^2 + 60^2) / 4 = 2600.
    expected = torch.tensor([[-60.0, -40.0], [40.0, 60.0]]) / math.sqrt(2600)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [-63.0, 63.0])
def test_brightness_is_not_clipped_so_standardization_takes_it_out_again(offset: float) -> None:
    images, settings = noise(10, 6), Augmentation(6)
    brighter = augment(images, choices(10, brightness=torch.full((10,), offset)), settings)
    torch.testing.assert_close(brighter, augment(images, choices(10), settings), rtol=0, atol=1e-5)


def test_every_image_gets_its_own_offset_and_factor() -> None:
    draws = draw(1000, 8, Augmentation(6), generator())
    assert draws.brightness.shape == draws.contrast.shape == draws.flips.shape == draws.rows.shape == (1000,)
    assert len(draws.brightness.unique()) > 990
    assert len(draws.contrast.unique()) > 990


# Reflected borders and holes


@pytest.mark.parametrize(("size", "crop", "padding"), [(8, 8, 4), (8, 6, 2), (5, 3, 4), (7, 7, 1), (4, 4, 3)])
def test_reflected_borders_are_those_of_torchvision(size: int, crop: int, padding: int) -> None:
    images = noise(60, size)
    settings = Augmentation(crop, padding=padding, brightness=0.0, contrast=0.0)
    draws = draw(60, size, settings, generator())
    padded = torchvision.pad(images, [padding] * 4, padding_mode="reflect")
    expected = []
    for image, row, column, flip in zip(padded, draws.rows, draws.columns, draws.flips, strict=True):
        square = torchvision.crop(image, int(row), int(column), crop, crop)
        expected.append(torchvision.hflip(square) if flip else square)
    # Same pixels: the arithmetic that follows is repeated to the last bit.
    pixels = torch.stack(expected).float()
    means = pixels.mean(dim=(2, 3), keepdim=True)
    assert torch.equal(augment(images, draws, settings), standardize((pixels - means) + means))


def test_a_reflection_does_not_repeat_the_outermost_pixel() -> None:
    images = torch.tensor([10, 20, 40] * 3, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
    # With two columns beyond either end: 40 20 [10 20 40] 20 10.
    draws = choices(3, columns=torch.tensor([0, 1, 4]))
    lines = torch.tensor([[40.0, 20.0, 10.0], [20.0, 10.0, 20.0], [40.0, 20.0, 10.0]])
    expected = standardize(lines[:, None, None].expand(3, 1, 3, 3))
    torch.testing.assert_close(augment(images, draws, Augmentation(3, padding=2)), expected, rtol=0, atol=1e-6)


def test_a_hole_is_0_in_every_channel_and_nothing_else_changes() -> None:
    images = noise(2, 5)
    holes = torch.tensor([[1, 3], [0, 2]])  # rows 1 and 3, columns 0 and 2
    whole = augment(images, choices(2), Augmentation(5))
    result = augment(images, choices(2, holes=holes), Augmentation(5, cutout=2))
    assert (whole != 0).all()
    expected = whole.clone()
    expected[0, :, 1:3, 0:2] = 0
    expected[1, :, 3:5, 2:4] = 0
    assert torch.equal(result, expected)
    assert int((result == 0).sum()) == 2 * 3 * 2 * 2


def test_a_hole_does_not_enter_the_standardization() -> None:
    image = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8)
    # Mean 1.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25; the hole covers the 3.
    draws = choices(1, holes=torch.tensor([[1], [1]]))
    expected = torch.tensor([[-1.5, -0.5], [0.5, 0.0]]) / math.sqrt(1.25)
    torch.testing.assert_close(augment(image, draws, Augmentation(2, cutout=1))[0, 0], expected, rtol=0, atol=1e-6)


def test_a_hole_is_not_mirrored() -> None:
    # It is drawn in the crop as the network sees it.
    draws = choices(1, flips=torch.tensor([True]), holes=torch.tensor([[0], [0]]))
    result = augment(noise(1, 4), draws, Augmentation(4, cutout=2))
    assert (result[0, :, :2, :2] == 0).all()
    assert int((result == 0).sum()) == 3 * 4


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
    result = augment(images, draw(50, 10, Augmentation(8), generator()), Augmentation(8))
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


def test_a_crop_beyond_the_image_is_refused_before_anything_is_drawn_even_with_padding() -> None:
    source = generator()
    before = source.get_state()
    with pytest.raises(QuantspikeError, match=r"data\.crop is 9, but the images are only 8 x 8"):
        draw(3, 8, Augmentation(9, padding=4), source)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("padding", [8, 9])
def test_no_more_than_a_whole_image_can_be_reflected(padding: int) -> None:
    draw(3, 8, Augmentation(8, padding=7), generator())
    message = f"train.padding is {padding}, but images of 8 x 8 pixels have only 7 to reflect at a border"
    with pytest.raises(QuantspikeError, match=message):
        draw(3, 8, Augmentation(8, padding=padding), generator())


def test_a_hole_beyond_the_crop_is_refused() -> None:
    draw(3, 8, Augmentation(6, cutout=6), generator())
    with pytest.raises(QuantspikeError, match=r"train\.cutout is 7, but the network sees only 6 pixels"):
        draw(3, 8, Augmentation(6, cutout=7), generator())


# Draws


def test_draws_are_uniform_and_stay_within_their_bounds() -> None:
    n = 60_000
    draws = draw(n, 32, Augmentation(24), generator())
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
    draws = draw(20_000, 32, Augmentation(24, padding=4, cutout=8), generator())
    correlations = torch.corrcoef(torch.cat([torch.atleast_2d(value.float()) for value in vars(draws).values()]))
    assert (correlations - torch.eye(7)).abs().max() < 5 / math.sqrt(20_000)


def test_the_same_generator_gives_the_same_draws_and_another_seed_others() -> None:
    first, again, other = (draw(50, 32, Augmentation(24), generator(seed)) for seed in (4, 4, 5))
    for name, values in vars(first).items():
        assert torch.equal(values, getattr(again, name))
        assert not torch.equal(values, getattr(other, name))


def test_a_second_draw_from_one_generator_is_another() -> None:
    source = generator()
    first, second = (draw(50, 32, Augmentation(24), source) for _ in range(2))
    assert not torch.equal(first.contrast, second.contrast)


def test_without_flipping_nothing_else_changes() -> None:
    plain, mirrored = (draw(500, 32, Augmentation(24, flip=flip), generator()) for flip in (False, True))
    assert not plain.flips.any()
    for name in ("rows", "columns", "brightness", "contrast", "holes"):
        assert torch.equal(getattr(plain, name), getattr(mirrored, name))


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        ({"flip": False}, {"flips"}),
        ({"padding": 0}, {"rows", "columns"}),
        ({"brightness": 0.0}, {"brightness"}),
        ({"contrast": 0.0}, {"contrast"}),
        ({"cutout": 0}, {"holes"}),
    ],
)
def test_what_is_switched_off_leaves_all_other_choices_as_they_were(
    changes: dict[str, Any], concerned: set[str]
) -> None:
    everything = Augmentation(24, flip=True, padding=4, brightness=63.0, contrast=0.8, cutout=8)
    streams = generator(3), generator(3)
    on = draw(500, 32, everything, streams[0])
    off = draw(500, 32, replace(everything, **changes), streams[1])
    assert {name for name, values in vars(on).items() if not torch.equal(values, getattr(off, name))} == concerned
    assert torch.equal(streams[0].get_state(), streams[1].get_state())  # nor does what is drawn next change


def test_without_light_changes_every_offset_is_0_and_every_factor_1() -> None:
    draws = draw(500, 32, Augmentation(24, brightness=0.0, contrast=0.0), generator())
    assert torch.equal(draws.brightness, torch.zeros(500))
    assert torch.equal(draws.contrast, torch.ones(500))


@pytest.mark.parametrize("padding", [0, 4])
def test_corners_reach_every_place_in_the_padded_image_and_none_beyond(padding: int) -> None:
    draws = draw(5000, 8, Augmentation(6, padding=padding), generator())
    for corners in (draws.rows, draws.columns):
        assert corners.unique().tolist() == list(range(8 + 2 * padding - 6 + 1))


@pytest.mark.parametrize(("crop", "cutout", "places"), [(6, 2, 5), (6, 6, 1), (6, 0, 7)])
def test_a_hole_lies_anywhere_in_the_crop_as_a_whole(crop: int, cutout: int, places: int) -> None:
    draws = draw(5000, 8, Augmentation(crop, cutout=cutout), generator())
    for corners in draws.holes:
        assert corners.unique().tolist() == list(range(places))


def test_a_part_of_the_draws_is_that_of_the_images_chosen() -> None:
    draws = draw(10, 8, Augmentation(6, padding=2, cutout=3), generator())
    part = draws.part(slice(3, 7))
    for name in ("rows", "columns", "flips", "brightness", "contrast"):
        assert getattr(part, name).tolist() == getattr(draws, name).tolist()[3:7]
    assert part.holes.tolist() == [corners[3:7] for corners in draws.holes.tolist()]
    assert part.part(slice(1, 2)).brightness.tolist() == draws.brightness.tolist()[4:5]
    assert all(len(values.flatten()) == 0 for values in vars(draws.part(slice(4, 4))).values())


def test_images_augmented_in_parts_are_those_augmented_at_once() -> None:
    images, settings = noise(10, 8), Augmentation(6, padding=2, cutout=3)
    draws = draw(10, 8, settings, generator())
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    pieces = [augment(images[part], draws.part(part), settings) for part in parts]
    assert torch.equal(torch.cat(pieces), augment(images, draws, settings))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(5, 32, Augmentation(24), generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("crop", [4, 6])
@pytest.mark.parametrize(("padding", "cutout"), [(0, 0), (2, 3)])
def test_no_input_is_changed(crop: int, padding: int, cutout: int) -> None:
    images = noise(10, 6)
    settings = Augmentation(crop, padding=padding, cutout=cutout)
    draws = draw(10, 6, settings, generator())
    before = [value.clone() for value in (images, *vars(draws).values())]
    augment(images, draws, settings)
    augmentation.central_images(images, crop)
    pixels = images.float()
    standardize(pixels)
    for value, kept in zip((images, *vars(draws).values()), before, strict=True):
        assert torch.equal(value, kept)
    assert torch.equal(pixels, images.float())


@pytest.mark.parametrize("settings", [Augmentation(6), Augmentation(6, padding=3, cutout=2)])
def test_an_image_does_not_depend_on_its_neighbours(settings: Augmentation) -> None:
    images = noise(6, 8)
    draws = draw(6, 8, settings, generator())
    alone = augment(images[2:3], draws.part(slice(2, 3)), settings)
    assert torch.equal(augment(images, draws, settings)[2:3], alone)
