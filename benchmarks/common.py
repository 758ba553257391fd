"""What the benchmarks share: options, figures over rounds, the machine, and how a result is printed."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from quantspike.errors import QuantspikeError
from quantspike.files import write_json

CPU = torch.device("cpu")

PACKAGES = {"torch", "torchvision", "numba", "numpy", "mlflow", "spikingjelly", "snntorch"}


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has; the description is shown as it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=output_file, help="file that the result is written to as well")
    return parser


def output_file(text: str) -> Path:
    """Return an option's file to write; its folder must exist, so that no result is lost at the end."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist: create it, or name another file")
    return path


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an option that takes whole numbers from `least` on."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, found {text!r}")
        return int(text)

    return whole_number


def report(measure: Callable[[argparse.Namespace], Any], options: argparse.Namespace) -> Any:
    """Print what a benchmark measures as JSON and return it, or print the error that a user can fix."""
    try:
        result = measure(options)
        print(json.dumps(result, indent=2))
        if options.json:
            write_json(options.json, result)
        return result
    except QuantspikeError as error:
        sys.exit(f"error: {error}")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median over the rounds, and the least and the greatest value."""
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()["cpu_name"]
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "device": str(name),
        "architecture": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in sorted(installed.items()) if name in PACKAGES},
    }
