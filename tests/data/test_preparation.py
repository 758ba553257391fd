"""Crops and standardization: numbers computed by hand, a slow loop in float64, and torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as torchvision

from quantspike.data.preparation import center_crop, central_images, check_crop, standardize, standardize_exactly
from quantspike.errors import QuantspikeError


def noise(n: int, size: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def slow_standardize(images: Tensor) -> Tensor:
    """One image after the other, value by value, in float64."""
    result = []
    for image in images.double().numpy():
        values = [float(value) for value in image.ravel()]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        result.append((image - mean) / max(math.sqrt(variance), 1 / math.sqrt(len(values))))
    return torch.from_numpy(np.stack(result))


@pytest.mark.parametrize(("size", "crop"), [(32, 24), (8, 8), (7, 3)])
def test_the_central_crop_equals_torchvision_where_the_border_is_even(size: int, crop: int) -> None:
    images = noise(3, size)
    assert torch.equal(center_crop(images, crop), torchvision.center_crop(images, [crop, crop]))


def test_an_odd_border_is_wider_below_and_on_the_right() -> None:
    image = torch.arange(25).reshape(1, 1, 5, 5)
    assert center_crop(image, 2)[0, 0].tolist() == [[6, 7], [11, 12]]  # one row above, two below


@pytest.mark.parametrize("crop", [1, 31, 32])
def test_a_crop_up_to_the_whole_image_fits(crop: int) -> None:
    check_crop(32, crop)


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(QuantspikeError, match=r"data\.crop is 33, but the images are only 32 x 32 .* set it to 32"):
        check_crop(32, 33)
    with pytest.raises(QuantspikeError, match=r"data\.crop is 4, but the images are only 3 x 3"):
        center_crop(torch.zeros(1, 1, 3, 5), 4)


def test_standardization_by_hand() -> None:
    # Mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    pixels = torch.tensor([[[[1, 3], [5, 7]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-3.0, -1.0], [1.0, 3.0]]]]).double() / math.sqrt(5)
    torch.testing.assert_close(standardize(pixels.float()), expected.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(standardize_exactly(pixels), expected, rtol=0, atol=1e-15)


def test_all_channels_of_an_image_share_a_mean_and_a_std() -> None:
    # Values 0, 0, 0, 0 and 10, 10, 10, 10: mean 5, std 5.
    pixels = torch.tensor([0, 10], dtype=torch.uint8).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    expected = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert torch.equal(standardize(pixels.float()), expected)
    assert torch.equal(standardize_exactly(pixels), expected.double())


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_uniform_image_becomes_0(level: int) -> None:
    image = torch.full((1, 3, 24, 24), level, dtype=torch.uint8)
    assert torch.equal(central_images(image, 24), torch.zeros(1, 3, 24, 24))
    assert torch.equal(standardize_exactly(image), torch.zeros(1, 3, 24, 24).double())


def test_a_nearly_uniform_image_is_divided_by_the_lower_bound() -> None:
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 0, 0] = 1
    # n = 16: mean 1/16, std sqrt(15) / 16 = 0.242, which is below 1 / sqrt(16) = 0.25.
    for result in (central_images(image, 4)[0, 0], standardize_exactly(image)[0, 0]):
        assert result[0, 0] == (1 - 1 / 16) / 0.25  # 3.75
        assert result[1, 1] == -1 / 16 / 0.25  # -0.25


def test_test_images_are_cropped_standardized_and_otherwise_unchanged() -> None:
    images = noise(5, 9)
    before = images.clone()
    result, crop = central_images(images, 5), images[:, :, 2:7, 2:7]
    assert (result.dtype, result.shape) == (torch.float32, (5, 3, 5, 5))
    torch.testing.assert_close(result, slow_standardize(crop).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(standardize_exactly(crop), slow_standardize(crop), rtol=0, atol=1e-14)
    assert torch.equal(images, before)


def test_exact_standardization_does_not_depend_on_the_order_of_summation() -> None:
    images = noise(20, 8)
    flipped = standardize_exactly(images.flip(1, 2, 3)).flip(1, 2, 3)
    assert torch.equal(flipped, standardize_exactly(images))
    # All values of [n x - S] / sqrt(n Q - S^2) are one correctly rounded division of integers and their root.
    n = 3 * 8 * 8
    for image, result in zip(images.numpy().astype(object), standardize_exactly(images).numpy(), strict=True):
        total, squares = image.sum(), (image * image).sum()
        root = math.sqrt(n * squares - total**2)
        assert [(n * value - total) / root for value in image.ravel()] == result.ravel().tolist()
