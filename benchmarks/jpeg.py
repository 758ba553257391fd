"""What compressing the test images again does to a trained network.

    python benchmarks/jpeg.py --profile short --k fp32 1 --json jpeg.json

Every test image is compressed as JPEG at several qualities (Pillow's, its own subsampling) and read back. This measures
how much a network feels that its images differ from those it was trained on; what training on compressed images costs
takes the original ones to measure.
"""

from __future__ import annotations

import argparse
import io
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.measuring import predict
from trained_networks import add_chain_arguments, load_chain, precision, share, some_test_images
from training import machine

QUALITIES = (95, 85, 75, 60, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_chain_arguments(parser, images=10_000)
    parser.add_argument("--k", nargs="+", type=precision, default=["fp32"], help="precisions (default: fp32)")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        for k in options.k:
            network, dataset = load_chain(options, k)
            stored, labels = some_test_images(dataset, options.images)
            images = stored.numpy()
            for quality in (None, *QUALITIES):
                shown = images if quality is None else compressed(images, quality)
                predictions = predict(network, torch.from_numpy(shown), network.architecture.image_size).argmax(1)
                accuracy = share(predictions == labels)
                change = np.abs(shown.astype(np.int16) - images).mean()
                rows.append({"k": k, "quality": quality, "accuracy": accuracy, "mean_change": float(change)})
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print("| k | quality | mean change, grey levels | accuracy |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['k']} | {row['quality'] or 'as stored'} | {row['mean_change']:.2f} | {row['accuracy']:.2%} |")
    if options.json:
        n = {"images": options.images}
        write_json(options.json, {"machine": machine(torch.device("cpu")), "n": n, "rows": rows})


def compressed(images: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Images after JPEG at a quality of 1 to 95, uint8 [N, 1 or 3, H, W] -> the same."""
    result = np.empty_like(images)
    for number, image in enumerate(tqdm(images, desc=f"quality {quality}", unit="image", leave=False)):
        file = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        with Image.open(file) as read:
            result[number] = np.atleast_3d(np.asarray(read)).transpose(2, 0, 1)
    return result


if __name__ == "__main__":
    main()
