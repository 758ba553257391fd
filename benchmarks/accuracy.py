"""Measure what changed settings do to accuracy, spikes and CPU time, on training images that are held out.

    python benchmarks/accuracy.py --data path/to/cifar-10-batches-py --json accuracy.json \
        --variants fast:baseline.0.epochs=8 paper:baseline.0.epochs=4,baseline.1.epochs=5
    python benchmarks/accuracy.py --data path/to/cifar-10-batches-py --json accuracy.json --k 1 \
        --variants fast fast:convert.weight_bits=12 fast:train.activation_penalty=0.3

A variant is a profile of params.yaml, alone or with changes. The workflow's own stages run in a temporary project, in
which held-out training images take the place of the test images; those are not looked at. Networks are narrower than
in the profile, and two seeds run at a time, one thread each. Variants that train the same baseline share it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from common import CPU, at_least, machine, new_parser, report, spread
from quantspike.errors import QuantspikeError
from quantspike.files import write_text
from quantspike.params import Precision
from quantspike.paths import Run, find_run
from quantspike.reporting.results import SpikingResult, read_run
from quantspike.workflow.cli import load_checked_params

ROOT = Path(__file__).resolve().parents[1]

Figures = dict[str, float]
"""Accuracy and CPU-hours of a run; of a quantized one, also SOPs and, if all images settle, the step after which."""


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", default="cifar10", help="a source of images, as in params.yaml (default: %(default)s)"
    )
    parser.add_argument("--variants", nargs="+", default=["fast"], help="profile, or profile:setting=value,...")
    parser.add_argument("--model", default="cnn1", help="network of params.yaml (default: %(default)s)")
    parser.add_argument("--width", type=float, default=0.25, help="factor on the channels (default: %(default)s)")
    parser.add_argument("--k", type=at_least(0), nargs="*", default=[], help="precisions (default: only the baseline)")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--held-out", type=at_least(1), default=5_000, help="images (default: %(default)s)")
    report(measure, parser.parse_args())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return for each variant the figures of its baseline and of each k, with their spread over the seeds."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        root = Path(folder)
        names = make_project(root, options)
        for name in names:
            run_stage(root, "download", "--profile", name)
        runs = list(pool.map(partial(run_variants, root, names, options), range(options.seeds)))
        baselines = [json.loads(path.read_text()) for path in root.glob("metrics/*/*/baseline.json")]
        arithmetics = sorted({baseline["provenance"]["arithmetic"] for baseline in baselines})
    return {
        "data": baselines[0]["data"]["name"],
        "machine": machine(CPU) | {"threads": 1, "arithmetic": arithmetics},
        "n": {"seeds": options.seeds, "held_out": options.held_out, "model": options.model, "width": options.width},
        "variants": {
            variant: {
                f"k = {k}" if k != "fp32" else "baseline": {
                    figure: spread([run[name, k][figure] for run in runs])
                    for figure in runs[0][name, k]
                    if all(figure in run[name, k] for run in runs)
                }
                for k in ("fp32", *options.k)
            }
            for variant, name in zip(options.variants, names, strict=True)
        },
    }


def make_project(root: Path, options: argparse.Namespace) -> list[str]:
    """Write params.yaml with a profile for each variant; return their names."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    data = {"source": str(absolute(options.data)), "held_out": options.held_out}
    for profile in params["profiles"].values():  # first, so that a variant can change the width
        profile["data"] |= data
        profile["width"] = options.width
    profiles = {f"v{index}": vary(params["profiles"], variant) for index, variant in enumerate(options.variants)}
    grid = {"profile": list(profiles), "model": [options.model], "k": options.k or [0]}
    params |= {"profiles": profiles, "grid": grid | {"seed": list(range(options.seeds))}}
    write_text(root / "params.yaml", yaml.safe_dump(params))
    load_checked_params(root / "params.yaml")
    return list(profiles)


def absolute(source: str) -> str | Path:
    """Return a source of images as it is named in another folder."""
    return Path(source).absolute() if Path(source).exists() else source


def vary(profiles: dict[str, Any], variant: str) -> dict[str, Any]:
    """Return a profile with the changes that a variant such as `fast:train.epochs=2,recipe.clip=null` names.

    Raises:
        QuantspikeError: there is no such profile or setting, or no value.
    """
    name, _, changes = variant.partition(":")
    if name not in profiles:
        raise QuantspikeError(f"--variants {variant}: no profile {name}; params.yaml has {', '.join(profiles)}")
    profile: dict[str, Any] = json.loads(json.dumps(profiles[name]))
    for change in filter(None, re.split(r",(?![^\[]*\])", changes)):  # not at the commas of a list
        place, equals, value = change.partition("=")
        if place in ("data.source", "data.held_out"):
            raise QuantspikeError(f"--variants {variant}: all variants have the same images, of --data and --held-out")
        if not equals:
            raise QuantspikeError(f"--variants {variant}: expected setting=value, found {change}")
        section: Any = profile
        *parents, last = (int(part) if part.isdecimal() else part for part in place.split("."))
        try:
            for part in parents:
                section = section[part]
            section[last]
        except (KeyError, IndexError, TypeError):
            raise QuantspikeError(f"--variants {variant}: the profile has no setting {place}") from None
        section[last] = yaml.safe_load(value)
    return profile


def run_variants(
    root: Path, names: Sequence[str], options: argparse.Namespace, seed: int
) -> dict[tuple[str, Precision], Figures]:
    """Run all stages of all variants with one seed; return their figures by profile and k."""
    params = load_checked_params(root / "params.yaml")
    figures: dict[tuple[str, Precision], Figures] = {}
    baselines: dict[str, Run] = {}
    for name in names:
        run = find_run(params, name, options.model, "fp32", seed, root)
        same = json.dumps(run.settings.training_settings("baseline"))
        if same in baselines:
            copy_files(baselines[same].data, run.data)
            copy_files(baselines[same].metrics, run.metrics)
            figures[name, "fp32"] = figures[baselines[same].profile, "fp32"]
        else:
            baselines[same] = run
            figures[name, "fp32"] = run_stages(run, "baseline")
        for k in options.k:
            run = find_run(params, name, options.model, k, seed, root)
            figures[name, k] = run_stages(run, "train", "finetune", "evaluate", "convert", "simulate")
    return figures


def run_stages(run: Run, *stages: str) -> Figures:
    """Run stages of one run and return what they measured; CPU-hours are those of the training."""
    arguments = ["--profile", run.profile, "--model", run.model, "--seed", str(run.seed)]
    arguments += [] if run.k == "fp32" else ["--k", str(run.k)]
    seconds = {stage: run_stage(run.root, stage, *arguments) for stage in stages}
    result = read_run(run)
    trained = sum(seconds[stage] for stage in ("baseline", "train", "finetune") if stage in seconds)
    figures = {"accuracy": result.evaluation.accuracy, "cpu_hours": trained / 3600}
    if isinstance(result, SpikingResult):
        snn = result.simulation
        figures |= {"snn_accuracy": snn.accuracy, "synops": snn.synops, "unsettled_at_T": snn.unsettled_at_T}
        figures |= {} if snn.settled_step is None else {"settled_step": snn.settled_step}
    return figures


def run_stage(root: Path, stage: str, *arguments: str) -> float:
    """Run a stage of the project in a folder and return the CPU time that it took, in seconds.

    Raises:
        QuantspikeError: it failed.
    """
    command = [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUANTSPIKE_TRACKING": "off"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise QuantspikeError(f"{stage} {' '.join(arguments)} failed: {output.read().strip()[-500:]}")
    return usage.ru_utime + usage.ru_stime


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder, its large files as links."""
    shutil.copytree(source, target, copy_function=os.link)


if __name__ == "__main__":
    main()
