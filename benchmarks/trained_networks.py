"""Which trained network a benchmark runs, and on which images."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantspike.architecture import Architecture
from quantspike.checkpoints import load_checkpoint
from quantspike.conversion import convert
from quantspike.data import Dataset, load_dataset, load_source
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork, load_integer_network
from quantspike.networks import BATCH_NORM_EPS, Block, QuantizedCNN
from quantspike.params import Precision, check_precision, load_params
from quantspike.paths import Chain

WEIGHT_BITS = 12


def newest_full_width_network() -> Path:
    """The integer network under data/ that was written last, of those whose layers params.yaml has at width 1.

    Raises:
        QuantspikeError: there is none.
    """
    full_width = {model.layers for model in load_params().models.values()}
    files = sorted(Path("data").glob("*/*/integer/network.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in reversed(files):
        if load_integer_network(path).architecture.text in full_width:
            return path
    raise QuantspikeError(
        "there is no network of full width under data/: add short to run.profile in params.yaml and run "
        "dvc repro --glob 'convert@short-cnn1-1-*' (hours on two cores), or name a trained one with --weights FILE and "
        "its images with --data"
    )


def load_network(path: Path) -> IntegerNetwork:
    """An integer network as `convert` writes it, or a trained network from outside, which is converted to 12 bits.

    A network from outside is a safetensors file with `layers`, `k` and `crop` in its header and the tensors
    `conv<i>.weight`, `bn<i>.weight`, `.bias`, `.running_mean`, `.running_var` and `classifier.weight`.

    Raises:
        QuantspikeError: the file is absent, damaged or neither, lacks a tensor, or holds values that are not finite.
    """
    if not path.is_file():
        raise QuantspikeError(f"{path} is not there: name a file of trained weights")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise QuantspikeError(f"{path} is damaged, or no safetensors file: {error}") from error
    if "layers" not in header:
        return load_integer_network(path)
    try:
        if float(header["batch_norm_eps"]) != BATCH_NORM_EPS:
            raise QuantspikeError(f"{path}: batch_norm_eps is {header['batch_norm_eps']}, expected {BATCH_NORM_EPS}")
        architecture = Architecture.parse(
            header["layers"],
            image_size=int(header["crop"]),
            image_channels=tensors["conv0.weight"].shape[1],
            classes=len(tensors["classifier.weight"]),
        )
        network = QuantizedCNN(architecture, int(header["k"]))
        _fill(network, tensors)
    except (KeyError, ValueError, RuntimeError, QuantspikeError) as error:
        raise QuantspikeError(f"{path} is no whole trained network: {error}") from error
    return convert(network, WEIGHT_BITS)


def load_images(source: Path | None) -> Dataset:
    """Images from a file of `download`, or from wherever data.source may point; by default the newest under data/.

    Raises:
        QuantspikeError: there are none.
    """
    if source is None:
        files = sorted(Path("data").glob("*/images.safetensors"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise QuantspikeError("there are no images under data/: name them with --data, see README, Your images")
        source = files[-1]
    if source.suffix == ".safetensors":
        return load_dataset(source)
    with tempfile.TemporaryDirectory() as folder:
        return load_source(str(source), downloads=Path(folder))


def add_chain_arguments(parser: argparse.ArgumentParser, images: int) -> None:
    """The options by which a benchmark names a trained chain, how many of its images, and where the result goes."""
    parser.add_argument("--profile", default="short", help="profile in params.yaml (default: %(default)s)")
    parser.add_argument("--model", default="cnn1", help="network in params.yaml (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--images", type=int, default=images, help="test images (default: %(default)s)")
    parser.add_argument("--json", type=output, help="where the result goes as well")


def load_chain(options: argparse.Namespace, k: Precision) -> tuple[QuantizedCNN, Dataset]:
    """A trained network of params.yaml, on the CPU and in evaluation mode, and its images.

    Raises:
        QuantspikeError: params.yaml lacks it, or it has not been trained.
    """
    params = load_params()
    if options.profile not in params.profiles or options.model not in params.models:
        raise QuantspikeError(
            f"params.yaml has no profile {options.profile} or no model {options.model}; it has "
            f"{', '.join(params.profiles)} and {', '.join(params.models)}"
        )
    chain = Chain(options.profile, options.model, k, options.seed)
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    network = load_checkpoint(chain.data / "finetune.safetensors", architecture, k).network
    return network.eval(), dataset


def some_test_images(dataset: Dataset, n: int, option: str = "--images") -> tuple[Tensor, Tensor]:
    """Test images that lie evenly over the whole test set: the first ones of a folder are all of one class.

    Args:
        dataset: its test images are taken, in their order.
        n: how many.
        option: that said so, for the message.

    Returns:
        uint8 [n, C, H, W] and int64 labels [n].

    Raises:
        QuantspikeError: there are not so many, or none were asked for.
    """
    total = len(dataset.test_images)
    if not 1 <= n <= total:
        raise QuantspikeError(f"{option} is {n}, but there are {total} test images: name 1 to {total}")
    chosen = torch.arange(n) * total // n
    return torch.from_numpy(dataset.test_images)[chosen], torch.from_numpy(dataset.test_labels)[chosen]


def precision(text: str) -> Precision:
    """An option's fp32 or integer k."""
    try:
        return check_precision(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def integer_precision(text: str) -> int:
    """An option's k of a network that has a spiking counterpart."""
    k = precision(text)
    if k == "fp32":
        raise argparse.ArgumentTypeError("fp32 has no spiking network: name an integer k")
    return int(k)


def output(text: str) -> Path:
    """An option's file to write, whose folder must be there: a result must not be lost after hours of work."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}: make it, or name another file")
    return path


def share(hits: Tensor) -> float:
    """How many of them are true, 0 to 1."""
    return hits.double().mean().item()


def _fill(network: QuantizedCNN, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for index, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            block.convolution.weight.copy_(tensors[f"conv{index}.weight"])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(block.normalization, name).copy_(tensors[f"bn{index}.{name}"])
        network.classifier.weight.copy_(tensors["classifier.weight"])
