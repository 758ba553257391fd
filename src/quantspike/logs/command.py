"""Reads simulation logs in the published format, whoever wrote them: `python -m quantspike.logs FOLDER ...`.

reads:   accuracy.txt, spike_num.txt, spike_collect.txt and sop_num.txt in each FOLDER, or in its folders k0, k1, ...
writes:  with --plot OUT, the figures accuracy_speed, sparsity, sops and frontier into OUT, all logs in one picture

One number per line, for each batch in turn one line per step; within a batch: images classified correctly at
that step, cumulative spikes, cumulative net spikes, cumulative synaptic operations (SOPs).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from quantspike.errors import QuantspikeError
from quantspike.logs.reading import Logs, find_logs, read_logs
from quantspike.params import LARGEST_K
from quantspike.published import LAYERS


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m quantspike.logs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="logs, or a folder of k0, k1, ...")
    parser.add_argument("--images", type=_from_one, required=True, metavar="N", help="images in each simulation")
    parser.add_argument("--steps", type=_from_one, required=True, metavar="T", help="steps of each simulation")
    parser.add_argument("--batch", type=_from_one, metavar="B", help="images in each batch but the last, to be checked")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="folder for figures of all these logs together")
    parser.add_argument("--model", choices=sorted(LAYERS), help="published network beside which they are drawn")
    options = parser.parse_args()
    try:
        # Each folder once, however often and by whatever path it is named.
        found = {folder.resolve(): folder for given in options.folders for folder in find_logs(given)}
        logs = [read_logs(folder, options.images, options.steps, options.batch) for folder in found.values()]
        if options.plot is not None:
            plot(logs, options.plot, options.model)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(logs))
    for log in logs:
        if options.batch is None and log.images % log.batches:
            print(
                f"note: {log.folder} has {log.batches} batches, which cannot share {log.images} images equally; "
                "if that is not so, the logs were cut short: name the size of the batches with --batch",
                file=sys.stderr,
            )
    print(f"\nAfter step {options.steps}; spikes and SOPs per image, averages of {options.images:,} images.")
    if options.plot is not None:
        print(f"Figures: {options.plot}/")


def table(logs: Sequence[Logs]) -> str:
    """One line per simulation, aligned, under a line of titles: the values at the last step, counts per image."""
    lines = [("folder", "accuracy %", "stable step", "positive spikes", "negative spikes", "SOPs", "batches")]
    for name, log in zip(_short_names([log.folder for log in logs]), logs, strict=True):
        # Python divides its own integers exactly before it rounds, whatever their size.
        per_image = [int(counts[-1]) / log.images for counts in (log.positive_spikes, log.negative_spikes, log.synops)]
        accuracy = f"{100 * log.accuracy[-1]:.2f}"
        positive, negative, synops = (f"{count:,.0f}" for count in per_image)
        lines.append((name, accuracy, str(log.stable_step), positive, negative, synops, f"{log.batches:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        ).rstrip()
        for name, *cells in lines
    )


def plot(logs: Sequence[Logs], folder: Path, model: str | None = None) -> None:
    """Draws the figures that logs suffice for, all of them together, as PNG and SVG.

    Args:
        logs: of the same images and steps; a folder named k<k> tells its precision, and so its colour.
        folder: where the figures go.
        model: the published network that they belong to, for its neurons, multiply-accumulates and curves.

    Raises:
        QuantspikeError: the file system refuses a write.
    """
    from quantspike.figures import LOG_FIGURES, compare_logs, save  # matplotlib, which reading logs does not need

    comparison = compare_logs(labelled(logs), model)
    for name, draw in LOG_FIGURES.items():
        save(draw(comparison), folder, name)


def labelled(logs: Sequence[Logs]) -> list[tuple[Logs, int | None, str]]:
    """Each with its k, and with what tells it apart from others of the same k."""
    names = [log.folder.absolute().name for log in logs]
    matches = [re.fullmatch(r"k([0-9]{1,2})", name) for name in names]
    precisions = [int(match[1]) if match and int(match[1]) <= LARGEST_K else None for match in matches]
    short = _short_names([log.folder for log in logs])
    told = [(k, _origin(name, f"k{k}")) for k, name in zip(precisions, short, strict=True)]
    labelled = []
    for log, (k, origin), name in zip(logs, told, short, strict=True):
        unique = k is not None and precisions.count(k) == 1
        # What was left out of a name may be all that told it from another.
        labelled.append((log, k, "" if unique else origin if told.count((k, origin)) == 1 else name))
    return labelled


def _origin(name: str, k: str) -> str:
    """What of a folder's name tells whose logs they are: without `k1`, and without `logs` as this project has it."""
    parts = [part for part in name.split("/") if part != k]
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1] == "logs" else parts) or name


def _short_names(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: their paths without the folder that all of them lie in."""
    whole = [folder.absolute() for folder in folders]
    common = os.path.commonpath([folder.parent for folder in whole])
    return [folder.relative_to(common).as_posix() for folder in whole]


def _from_one(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)
