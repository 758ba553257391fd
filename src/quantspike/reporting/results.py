"""Results of finished runs: their files, checked and typed."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantspike.errors import QuantspikeError
from quantspike.files import damaged, read_json, reading
from quantspike.networks.architecture import Architecture, architecture_of
from quantspike.params import Setting
from quantspike.paths import Run
from quantspike.reporting.published import PUBLISHED, Published, is_published_network

MEASURES = ("loss", "train_accuracy", "test_accuracy", "learning_rate")
"""What baseline.csv, train.csv and finetune.csv hold per epoch."""

COUNTS = ("positive_spikes", "negative_spikes", "net_spikes", "synops", "settled")
"""What simulate.csv, simulate_layers.csv and simulate_delays.csv hold per step."""

BASELINE_FILES = ("baseline.csv", "baseline.json")
"""Result files of a baseline, in its metrics folder."""

SPIKING_FILES = (
    "train.csv",
    "finetune.csv",
    "evaluate.json",
    "convert.json",
    "simulate.csv",
    "simulate_layers.csv",
    "simulate_delays.csv",
    "simulate.json",
    "certificate.json",
)
"""Result files of a quantized run, in its metrics folder."""

_MOST = 2**53
"""Floats hold every whole number up to it; no count comes near it."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Positive = Annotated[int, Field(ge=1, le=_MOST)]
Amount = Annotated[float, Field(ge=0, le=_MOST)]


class _Content(BaseModel):
    """Content of a result file: these fields are required and checked; others are allowed."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class DataSet(_Content):
    """Fingerprint of the images that a run was trained and tested on."""

    kind: Literal["cifar10", "images", "digits"]
    name: str
    train_images: Count
    test_images: Count
    classes: Annotated[list[str], Field(min_length=1)]
    sha256: str


class Provenance(_Content):
    """What a network was trained with: settings under dotted names such as `train.epochs`, and the machine.

    `threads` of each process are unknown in older files.
    """

    settings: dict[str, Setting]
    arithmetic: Literal["fp32", "bf16"]
    device: str
    processes: Positive
    threads: Positive | None = None
    torch: str


class Evaluation(_Content):
    """The trained network: accuracy on the test images, size and multiply-accumulates per image, and its training."""

    images: Positive
    correct: Count
    accuracy: Share
    loss: float
    macs: Count
    neurons: Positive
    weights: Count
    data: DataSet
    provenance: Provenance


class Conversion(_Content):
    """The integer network: precision of the activations and width of its weights in bits."""

    k: Count
    weight_bits: Count


class Simulation(_Content):
    """The spiking network after its last step T; spikes and synops are averages per image.

    `ann_agreement` is the share of images on which the integer network predicts what the trained one does;
    `differing_predictions` counts the images on which the spiking network, once settled or else at the settling
    limit, does not predict what the integer network does; `unsettled_at_T` those not settled after T steps, with
    which there is no `stable_step`, since the accuracy may change later; `largest_counts` holds, for each layer, the
    largest net count of any neuron and image; `least_synops` is what it would take if every neuron fired its net
    count and no negative spike: a lower bound for any schedule.
    """

    images: Positive
    steps: Positive
    layer_delay: Count
    integer_accuracy: Share
    accuracy: Share
    ann_agreement: Share
    differing_predictions: Count
    stable_step: Positive | None
    settled_step: Positive | None
    unsettled_at_T: Count
    largest_counts: list[Count]
    positive_spikes: Amount
    negative_spikes: Amount
    net_spikes: float
    synops: Amount
    least_synops: Amount


class Certificate(_Content):
    """How many images settled by `settle_limit`, beyond T, and how many of these differ from the integer network."""

    images: Count
    settle_limit: Positive
    settled_by_limit: Count
    mismatches: Count

    @property
    def equal(self) -> int:
        """Images that settled with every net spike count equal to the integer network's."""
        return self.settled_by_limit - self.mismatches


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one run measured; of a baseline, this is all.

    Attributes:
        run: the combination of the grid, with its settings.
        architecture: the network's layers.
        evaluation: the trained network, and its data set.
        training: one row per epoch of the run's own phases: phase (`baseline`, `train`, `finetune`), epoch (from 1,
            counted on over the phases), measures.
        published: the published figures, where network and data set are the published ones.
    """

    run: Run
    architecture: Architecture
    evaluation: Evaluation
    training: pd.DataFrame
    published: Published | None


@dataclass(frozen=True, eq=False)
class SpikingResult(RunResult):
    """What a run of a whole-number k measured.

    Attributes:
        conversion: the integer network.
        simulation: the spiking network after its last step.
        certificate: the comparison with the integer network, image by image.
        steps: one row per step: accuracy, and the cumulative counts per image.
        layers: the same per layer, without accuracy.
        delays: the same as `steps` for each layer delay; all else is of the first one.
    """

    conversion: Conversion
    simulation: Simulation
    certificate: Certificate
    steps: pd.DataFrame
    layers: pd.DataFrame
    delays: pd.DataFrame

    @property
    def cost_by_delay(self) -> dict[int, tuple[int | None, float]]:
        """For each layer delay, first step with all images settled, None if there is none up to T, and SOPs by T."""
        costs: dict[int, tuple[int | None, float]] = {}
        for delay in self.delays["layer_delay"].unique():
            table = self.delays[self.delays["layer_delay"] == delay]
            before = int((table["settled"] < 1).sum())
            costs[int(delay)] = (before + 1 if before < len(table) else None, float(table["synops"].iloc[-1]))
        return costs


def spiking_results(results: Sequence[RunResult]) -> list[SpikingResult]:
    """Return the results of the runs that have spikes, which are all but the baselines."""
    return [result for result in results if isinstance(result, SpikingResult)]


def result_files(run: Run) -> list[Path]:
    """Return every file that the result of a run is read from."""
    return [run.metrics / name for name in (BASELINE_FILES if run.k == "fp32" else SPIKING_FILES)]


def missing_files(run: Run) -> list[Path]:
    """Return the result files that a run still lacks: none of them if it is finished."""
    return [path for path in result_files(run) if not path.is_file()]


def read_finished(runs: Sequence[Run]) -> list[RunResult]:
    """Return the results of the runs that are finished and up to date, in the order given.

    The others are named on stderr and left out.

    Raises:
        QuantspikeError: a result file is damaged or holds something that is not allowed.
    """
    unfinished = [run for run in runs if missing_files(run)]
    results = [read_run(run) for run in runs if run not in unfinished]
    stale = [result.run for result in results if outdated(result)]
    _note_left_out("not finished", unfinished, len(runs))
    _note_left_out("different settings", stale, len(runs))
    return [result for result in results if result.run not in stale]


def read_all(runs: Sequence[Run]) -> list[RunResult]:
    """Return the results of all these runs, in the order given.

    Raises:
        QuantspikeError: there is no run, or one is not finished or not up to date, or a result file is damaged.
    """
    if not runs:
        raise QuantspikeError("the grid of params.yaml holds no such run: add its profile and model there")
    if missing := {run.key: paths for run in runs if (paths := missing_files(run))}:
        first = next(iter(missing.values()))[0]
        raise QuantspikeError(f"not finished: {', '.join(missing)} ({first} does not exist); run dvc repro")
    results = [read_run(run) for run in runs]
    for result in results:
        if differences := outdated(result):
            raise QuantspikeError(
                f"{result.run.key} has results of different settings ({differences[0]}); run dvc repro"
            )
    return results


def outdated(result: RunResult) -> list[str]:
    """Return the settings that differ between params.yaml and a result, each as `name: expected ..., found ...`."""
    settings, evaluation = result.run.settings, result.evaluation
    expected = settings.training_settings("baseline" if result.run.k == "fp32" else "finetune")
    expected |= {"seed": result.run.seed, "data.sha256": evaluation.data.sha256}
    found = evaluation.provenance.settings
    pairs: dict[str, tuple[object, object]] = {
        name: (expected.get(name, "none"), found.get(name, "none")) for name in expected | found
    }
    pairs[f"neurons of {result.run.model}"] = (result.architecture.neurons, evaluation.neurons)
    if isinstance(result, SpikingResult):
        pairs["k"] = (result.run.k, result.conversion.k)
        pairs["weight_bits in convert.json"] = (settings.convert.weight_bits, result.conversion.weight_bits)
        pairs["simulate.steps"] = (settings.simulate.steps, result.simulation.steps)
        pairs["simulate.layer_delay"] = (settings.simulate.layer_delay, list(result.cost_by_delay))
        pairs["simulate.settle_limit"] = (settings.simulate.settle_limit, result.certificate.settle_limit)
    return [f"{name}: expected {now}, found {then}" for name, (now, then) in pairs.items() if now != then]


def _note_left_out(why: str, left_out: Sequence[Run], total: int) -> None:
    if left_out:
        names = ", ".join(run.key for run in left_out[:3]) + (" ..." if len(left_out) > 3 else "")
        print(f"note: left out {len(left_out)} of {total} runs, {why}: {names}; dvc repro runs them", file=sys.stderr)


def read_run(run: Run) -> RunResult:
    """Read and check the result files of one run.

    Raises:
        QuantspikeError: a result file is absent or damaged, or holds something that is not allowed.
    """
    evaluation = _read_json(run.metrics / ("baseline.json" if run.k == "fp32" else "evaluate.json"), Evaluation)
    comparable = is_published_network(run) and evaluation.data.kind == "cifar10"
    result = RunResult(
        run=run,
        architecture=architecture_of(run, classes=len(evaluation.data.classes)),
        evaluation=evaluation,
        training=_read_training(run, evaluation.provenance),
        published=PUBLISHED.get((run.model, run.k)) if comparable else None,
    )
    return result if run.k == "fp32" else _read_spiking(result)


def _read_spiking(result: RunResult) -> SpikingResult:
    folder = result.run.metrics
    conversion = _read_json(folder / "convert.json", Conversion)
    simulation = _read_json(folder / "simulate.json", Simulation)
    if simulation.images != result.evaluation.images:
        found = f"{simulation.images} images, but evaluate.json has {result.evaluation.images}"
        raise damaged(folder / "simulate.json", found)
    # A network of another size is outdated, which the settings tell.
    same_size = result.evaluation.neurons == result.architecture.neurons
    layers = _read_table(folder / "simulate_layers.csv", ("step", "layer", "neurons", *COUNTS))
    if same_size:
        _check_layers(result, simulation, layers)
    steps = _read_table(folder / "simulate.csv", ("step", "accuracy", *COUNTS))
    _check_counter(folder / "simulate.csv", steps["step"], simulation.steps)
    delays = _read_table(folder / "simulate_delays.csv", ("layer_delay", "step", "accuracy", *COUNTS))
    _check_delays(folder / "simulate_delays.csv", delays, simulation)
    certificate = _read_json(folder / "certificate.json", Certificate)
    return SpikingResult(
        **vars(result),
        conversion=conversion,
        simulation=simulation,
        certificate=certificate,
        steps=steps,
        layers=layers,
        delays=delays,
    )


_Kind = TypeVar("_Kind", bound=_Content)


def _read_json(path: Path, kind: type[_Kind]) -> _Kind:
    with reading(path):
        try:
            return kind.model_validate(read_json(path))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the whole file"
            raise damaged(path, f"{place}: {problem['msg']}") from error


def _read_training(run: Run, provenance: Provenance) -> pd.DataFrame:
    """Return the phases below each other; the epochs of one count on from those before."""
    phases: list[pd.DataFrame] = []
    for phase in ("baseline",) if run.k == "fp32" else ("train", "finetune"):
        path = run.metrics / f"{phase}.csv"
        table = _read_table(path, ("epoch", *MEASURES))
        # A baseline has the epochs of several phases: baseline.0.epochs, baseline.1.epochs.
        named = {name: n for name, n in provenance.settings.items() if re.fullmatch(rf"{phase}(\.\d+)?\.epochs", name)}
        _check_counter(path, table["epoch"], sum(n for n in named.values() if isinstance(n, int)))
        before = sum(map(len, phases))
        phases.append(table.assign(phase=phase, epoch=table["epoch"] + before))
    return pd.concat(phases, ignore_index=True)[["phase", "epoch", *MEASURES]]


def _check_layers(result: RunResult, simulation: Simulation, layers: pd.DataFrame) -> None:
    """Refuse files that are not about every layer of the network, at every step."""
    folder = result.run.metrics
    expected = [(index, layer.neurons) for index, layer in enumerate(result.architecture.layers, start=1)]
    if len(simulation.largest_counts) != len(expected):
        found = f"{len(simulation.largest_counts)} largest_counts, expected one for each of the {len(expected)} layers"
        raise damaged(folder / "simulate.json", found)
    # Lengths first, here and below: a damaged number of steps would ask for any amount of memory.
    complete = len(layers) == len(expected) * simulation.steps
    if not complete or list(zip(layers["layer"], layers["neurons"], strict=True)) != expected * simulation.steps:
        raise damaged(
            folder / "simulate_layers.csv",
            f"expected {simulation.steps} steps with a line for each of the {len(expected)} layers in turn",
        )


def _check_counter(path: Path, counter: pd.Series[int], last: int) -> None:
    if len(counter) != last or counter.tolist() != list(range(1, last + 1)):
        raise damaged(path, f"{counter.name} must count from 1 to {last}, line by line")


def _check_delays(path: Path, table: pd.DataFrame, simulation: Simulation) -> None:
    """Refuse a file without every step of each layer delay in turn, first of that of simulate.json."""
    delays = list(dict.fromkeys([simulation.layer_delay, *table["layer_delay"]]))
    complete = len(table) == len(delays) * simulation.steps
    expected = ((delay, step) for delay in delays for step in range(1, simulation.steps + 1))
    if not complete or list(zip(table["layer_delay"], table["step"], strict=True)) != list(expected):
        found = f"expected steps 1 to {simulation.steps} of each layer_delay in turn, {simulation.layer_delay} first"
        raise damaged(path, found)


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file of numbers with exactly these columns."""
    with reading(path):
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise damaged(path, "its last line is cut off")
        table = pd.read_csv(io.BytesIO(content), low_memory=False)
    # Of lines with more cells than titles, pandas makes the first cells an index.
    if tuple(table.columns) != columns or content.count(b",") != (len(columns) - 1) * content.count(b"\n"):
        found = ",".join(str(name) for name in table.columns)
        raise damaged(path, f"it has the columns {found}, expected {','.join(columns)} and as many cells in every line")
    for name in columns if len(table) else ():
        low = -_MOST if name == "net_spikes" else 0
        high = 1 if name == "settled" or name.endswith("accuracy") else _MOST
        if table[name].dtype.kind not in "iuf" or not table[name].between(low, high).all():
            raise damaged(path, f"{name} must be a number from {low} to {high} in every line")
    return table
