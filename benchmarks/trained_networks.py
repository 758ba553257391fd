"""The trained network that a benchmark runs, and the images that it runs on."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common import at_least
from quantspike.conversion.convert import convert
from quantspike.conversion.integer import IntegerNetwork, load_integer_network
from quantspike.data.dataset import Dataset, load_dataset
from quantspike.data.sources import load_source
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import BATCH_NORM_EPS, Block, QuantizedCNN
from quantspike.params import Simulate

WEIGHTS = Path("data/fast/cnn1-1-0/convert.safetensors")
IMAGES = "data/fast/images.safetensors"


def add_network_options(parser: argparse.ArgumentParser, images: int) -> None:
    """Add the options that name the network, the images and how many of them are simulated."""
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a network (default: %(default)s)")
    parser.add_argument("--weight-bits", type=int, default=8, help="of a network from elsewhere (default: %(default)s)")
    add_data_option(parser)
    parser.add_argument("--images", type=at_least(1), default=images, help="images to simulate (default: %(default)s)")


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the images."""
    parser.add_argument("--data", default=IMAGES, help="file or source of images (default: %(default)s)")


def load_network(path: Path, weight_bits: int = 8) -> IntegerNetwork:
    """Load an integer network as `convert` writes it, or a trained network from elsewhere, converted to so many bits.

    A network from elsewhere is a safetensors file with `layers`, `k`, `crop` and `batch_norm_eps` in its header and the
    tensors `conv<i>.weight`, `bn<i>.weight`, `.bias`, `.running_mean`, `.running_var` and `classifier.weight`.

    Raises:
        QuantspikeError: the file is absent, damaged or neither, lacks a tensor, or holds values that are not finite.
    """
    if not path.is_file():
        raise QuantspikeError(f"{path} does not exist: run dvc repro convert@fast-cnn1-1-0, or use --weights")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise QuantspikeError(f"{path} is damaged, or not a safetensors file: {error}") from error
    if "layers" not in header:
        return load_integer_network(path)
    try:
        network = _trained_network(header, tensors)
    except (KeyError, ValueError, RuntimeError, QuantspikeError) as error:
        raise QuantspikeError(f"{path} is not a complete trained network: {error}") from error
    return convert(network, weight_bits)


def load_images(source: str) -> Dataset:
    """Load images from a file of the stage `download`, or from any `data.source` of params.yaml.

    Raises:
        QuantspikeError: the images are absent or damaged.
    """
    if not source.endswith(".safetensors"):
        with tempfile.TemporaryDirectory() as folder:
            return load_source(source, downloads=Path(folder))
    if not Path(source).is_file():
        raise QuantspikeError(f"{source} does not exist: run dvc repro download@fast, or use --data")
    return load_dataset(Path(source))


def choose_images(dataset: Dataset, n: int) -> tuple[Tensor, Tensor]:
    """Return n test images at even distances, since the first ones of a folder are all of one class.

    Returns:
        Images uint8 [n, C, H, W] and labels int64 [n].

    Raises:
        QuantspikeError: there are fewer.
    """
    total = len(dataset.test_images)
    if n > total:
        raise QuantspikeError(f"--images is {n}, but there are only {total} test images")
    chosen = torch.arange(n) * total // n
    return torch.from_numpy(dataset.test_images)[chosen], torch.from_numpy(dataset.test_labels)[chosen]


def simulate_settings(steps: int, batch_size: int) -> Simulate:
    """Return the settings of a simulation by the event engine, until every image is settled."""
    limit = max(1000, steps)
    return Simulate(
        steps=steps,
        settle_limit=limit,
        layer_delay=[0],
        engine="events",
        batch_size=batch_size,
        log_batch=batch_size,
    )


def _trained_network(header: dict[str, str], tensors: dict[str, Tensor]) -> QuantizedCNN:
    if float(header["batch_norm_eps"]) != BATCH_NORM_EPS:
        raise QuantspikeError(f"batch_norm_eps is {header['batch_norm_eps']}, expected {BATCH_NORM_EPS}")
    architecture = Architecture.parse(
        header["layers"],
        image_size=int(header["crop"]),
        image_channels=tensors["conv0.weight"].shape[1],
        classes=len(tensors["classifier.weight"]),
    )
    network = QuantizedCNN(architecture, int(header["k"]))
    with torch.no_grad():
        for index, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            block.convolution.weight.copy_(tensors[f"conv{index}.weight"])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(block.normalization, name).copy_(tensors[f"bn{index}.{name}"])
        network.classifier.weight.copy_(tensors["classifier.weight"])
    return network
