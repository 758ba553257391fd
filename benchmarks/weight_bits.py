"""What the width of the integer weights does to accuracy: the same trained network converted to 4 to 16 bits.

    python benchmarks/weight_bits.py --profile short --k 0 1 2 --images 2000 --json weight_bits.json

What is scored is the integer network, to which the spiking one is equal. Beside each accuracy stands the share of
images for which the integer network predicts what the trained network predicts as it is. The conversion rounds the
image as well, to steps of 2^-(8 + k); other widths than 8 tell what that does.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from quantspike import integer
from quantspike.conversion import convert
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.integer import IntegerNetwork
from quantspike.measuring import predict
from quantspike.networks import QuantizedCNN
from quantspike.params import WEIGHT_BITS
from trained_networks import add_chain_arguments, integer_precision, load_chain, share, some_test_images
from training import machine

AT_ONCE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_chain_arguments(parser, images=2000)
    parser.add_argument("--k", type=integer_precision, nargs="+", default=[0, 1, 2], help="precisions (default: 0 1 2)")
    parser.add_argument(
        "--bits",
        type=int,
        choices=WEIGHT_BITS,
        nargs="+",
        default=list(WEIGHT_BITS),
        metavar="BITS",
        help="widths (default: 4 to 16)",
    )
    parser.add_argument(
        "--input-bits",
        type=int,
        choices=range(17),
        default=integer.INPUT_BITS,
        metavar="BITS",
        help="of images (default: %(default)s)",
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        for k in options.k:
            network, dataset = load_chain(options, k)
            with patch.object(integer, "INPUT_BITS", options.input_bits):
                rows += measure(network, *some_test_images(dataset, options.images), options.bits)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(rows))
    for row in rows:
        if "refused" in row:
            print(f"k = {row['k']}, {row['weight_bits']} bits: {row['refused']}")
    if options.json:
        n = {"images": options.images, "input_bits": options.input_bits}
        write_json(options.json, {"machine": machine(torch.device("cpu")), "n": n, "rows": rows})


def measure(network: QuantizedCNN, images: Tensor, labels: Tensor, widths: list[int]) -> list[dict[str, Any]]:
    """One row per width; a width that the network cannot be converted to has no accuracy but a reason."""
    plain = predict(network, images, network.architecture.image_size).argmax(1)
    rows = []
    for bits in tqdm(widths, desc=f"k = {network.k}", unit="width", leave=False):
        row = {"k": network.k, "weight_bits": bits, "plain_accuracy": share(plain == labels)}
        try:
            predictions = integer_predictions(convert(network, bits), images)
        except QuantspikeError as error:
            rows.append({**row, "refused": str(error)})
            continue
        agreement = {"accuracy": share(predictions == labels), "agrees_with_plain": share(predictions == plain)}
        rows.append({**row, **agreement})
    return rows


def integer_predictions(network: IntegerNetwork, images: Tensor) -> Tensor:
    """Classes that the integer network gives, int64 [N], for uint8 images [N, C, H, W]."""
    with torch.inference_mode():
        logits = [
            network.logits(network.settled_counts(network.input_current(part))[-1]) for part in images.split(AT_ONCE)
        ]
    return torch.cat(logits).argmax(1)


def table(rows: list[dict[str, Any]]) -> str:
    """The result in Markdown: a line per width, a pair of columns per k."""
    precisions = list(dict.fromkeys(row["k"] for row in rows))
    heads = [f"k = {k} | agrees" for k in precisions]
    lines = [f"| weight bits | {' | '.join(heads)} |", f"|{'---|' * (1 + 2 * len(precisions))}"]
    for bits in dict.fromkeys(row["weight_bits"] for row in rows):
        cells = [_cell(row) for k in precisions for row in rows if (row["k"], row["weight_bits"]) == (k, bits)]
        lines.append(f"| {bits} | {' | '.join(cells)} |")
    plain = [f"{next(row['plain_accuracy'] for row in rows if row['k'] == k):.2%} | " for k in precisions]
    return "\n".join([*lines, f"| float | {' | '.join(plain)} |"])


def _cell(row: dict[str, Any]) -> str:
    return "refused | " if "refused" in row else f"{row['accuracy']:.2%} | {row['agrees_with_plain']:.2%}"


if __name__ == "__main__":
    main()
