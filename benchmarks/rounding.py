"""Where the integer network parts from the trained one: neurons with another count, layer by layer.

    python benchmarks/rounding.py --profile short --k 0 1 2 --images 100 --json rounding.json

The conversion rounds weights (to 12 bits, `convert.weight_bits`) and the image (to steps of 2^-(8 + k)). Counts of the
integer network at several widths of both are compared with those of the trained network in float64.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from published_rule import PublishedNetwork
from quantspike import integer
from quantspike.augmentation import central_images
from quantspike.conversion import convert
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.networks import QuantizedCNN
from trained_networks import add_chain_arguments, integer_precision, load_chain, some_test_images
from training import machine

WIDTHS = ((12, 8), (16, 8), (12, 12), (16, 12), (16, 16))
"""Bits of the weights, and bits that the image has beyond the k of the activations."""

AT_ONCE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_chain_arguments(parser, images=100)
    parser.add_argument("--k", type=integer_precision, nargs="+", default=[0, 1, 2], help="precisions (default: 0 1 2)")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        for k in options.k:
            network, dataset = load_chain(options, k)
            rows += measure(network, some_test_images(dataset, options.images)[0])
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(rows))
    if options.json:
        n = {"images": options.images}
        write_json(options.json, {"machine": machine(torch.device("cpu")), "n": n, "rows": rows})


def measure(network: QuantizedCNN, images: Tensor) -> list[dict[str, Any]]:
    """One row per pair of widths: of each layer, the share of neurons that have another count, 0 to 1.

    Raises:
        QuantspikeError: the network cannot be converted to one of the widths.
    """
    trained, size = PublishedNetwork(network), network.architecture.image_size
    converted = {bits: convert(network, bits) for bits, _ in WIDTHS}
    differing = {widths: torch.zeros(len(network.architecture.layers), dtype=torch.int64) for widths in WIDTHS}
    for part in tqdm(images.split(AT_ONCE), desc=f"k = {network.k}", unit="batch", leave=False):
        with torch.inference_mode():
            expected = trained.counts(central_images(part, size).double())
            for weight_bits, input_bits in WIDTHS:
                with patch.object(integer, "INPUT_BITS", input_bits):
                    current = converted[weight_bits].input_current(part)
                found = converted[weight_bits].settled_counts(current)
                differing[weight_bits, input_bits] += torch.tensor(
                    [int((ours != theirs).sum()) for ours, theirs in zip(found, expected, strict=True)]
                )
    neurons = torch.tensor([layer.neurons for layer in network.architecture.layers], dtype=torch.float64) * len(images)
    return [
        {"k": network.k, "weight_bits": weight_bits, "input_bits": input_bits, "differing": (count / neurons).tolist()}
        for (weight_bits, input_bits), count in differing.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The result in Markdown: a line per k and pair of widths, a column per layer."""
    layers = range(1, 1 + len(rows[0]["differing"]))
    lines = [f"| k | weight bits | image bits - k | {' | '.join(f'layer {layer}' for layer in layers)} |"]
    lines.append(f"|{'---|' * (3 + len(layers))}")
    for row in rows:
        shares = " | ".join(f"{value:.3%}" for value in row["differing"])
        lines.append(f"| {row['k']} | {row['weight_bits']} | {row['input_bits']} | {shares} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
