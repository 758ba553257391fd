"""Results of finished chains: their files, checked and typed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantspike import files
from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.params import Params, Profile
from quantspike.paths import Chain
from quantspike.published import Published, is_published_data, is_published_network, published

MEASURES = ("loss", "train_accuracy", "validation_accuracy", "test_accuracy", "learning_rate", "seconds")
"""What pretrain.csv, train.csv and finetune.csv have by epoch."""

COUNTS = ("positive_spikes", "negative_spikes", "net_spikes", "synops", "settled")
"""What snn.csv and layers.csv have by step."""

_MENDING = "delete it and run dvc repro"

FILES = (
    "train.csv",
    "finetune.csv",
    "ann.json",
    "conversion.json",
    "snn.csv",
    "layers.csv",
    "snn.json",
    "certificate.json",
)
"""What a finished chain has in its metrics folder, beside what every k shares: see `result_files`."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class _Content(BaseModel):
    """Content of a result file: what is named must be there and of that type; more may stand beside it."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class DataSet(_Content):
    """Fingerprint of the images that a chain was trained and tested on."""

    kind: Literal["cifar10", "images", "digits"]
    name: str
    train_images: Count
    test_images: Count
    classes: list[str]
    sha256: str

    @property
    def stands_for_cifar10(self) -> bool:
        """Whether these are all images of CIFAR-10: the official archive, or its images encoded anew."""
        return is_published_data(self.kind, self.classes, self.train_images, self.test_images)


class MadeWith(_Content):
    """What a network was trained with: settings under dotted names such as `train.epochs`, and the machine."""

    settings: dict[str, str | int | float | bool]
    arithmetic: Literal["fp32", "bf16"]
    device: str
    processes: Annotated[int, Field(ge=1)]
    torch: str


class Ann(_Content):
    """The network before conversion: test images, accuracy, size and operations per image, and its training."""

    images: Annotated[int, Field(ge=1)]
    accuracy: Share
    macs: Count
    neurons: Annotated[int, Field(ge=1)]
    weights: Count
    data: DataSet
    made_with: MadeWith


class Conversion(_Content):
    """The integer network: precision of the activations and width of its weights in bits."""

    k: Count
    weight_bits: Count
    neurons: Count


class Snn(_Content):
    """The spiking network after its last step T; spikes and synops are averages per image.

    `ann_agreement` is the share of images on which the integer network predicts what the trained one does;
    `differing_predictions` counts the images on which the spiking network, once at rest or else at the settling
    limit, does not predict what the integer network does; `unsettled` those not at rest after T steps;
    `largest_counts` holds, for each layer, the largest net count of any neuron and image.
    """

    images: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    integer_accuracy: Share
    accuracy: Share
    ann_agreement: Share
    differing_predictions: Count
    stable_step: Annotated[int, Field(ge=1)]
    settled_step: Annotated[int, Field(ge=1)] | None
    unsettled: Count
    largest_counts: list[Count]
    positive_spikes: Amount
    negative_spikes: Amount
    net_spikes: float
    synops: Amount


class Certificate(_Content):
    """How many images came to rest, T exceeded if need be, and how many of these differ from the integer network."""

    images: Count
    settle_limit: Annotated[int, Field(ge=1)]
    settled: Count
    mismatches: Count

    @property
    def equal(self) -> int:
        """Images that came to rest with every net spike count equal to the integer network's."""
        return self.settled - self.mismatches


@dataclass(frozen=True, eq=False)
class ChainResult:
    """What one chain measured; the spiking parts are `None` for fp32.

    Attributes:
        chain: the combination of the grid.
        settings: its profile in params.yaml.
        architecture: the network's layers.
        ann: the network before conversion, and its data set.
        training: one row per epoch: phase (`pretrain`, `train`, `finetune`), epoch (counted on over all of them),
            measures.
        conversion: the integer network.
        snn: the spiking network after its last step.
        certificate: the comparison with the integer network, image by image.
        steps: one row per step: accuracy, and what was counted up to there per image.
        layers: the same per layer, without accuracy.
        published: the published figures, where network and data set are the published ones.
    """

    chain: Chain
    settings: Profile
    architecture: Architecture
    ann: Ann
    training: pd.DataFrame
    conversion: Conversion | None
    snn: Snn | None
    certificate: Certificate | None
    steps: pd.DataFrame | None
    layers: pd.DataFrame | None
    published: Published | None


def result_files(chain: Chain, settings: Profile) -> list[Path]:
    """Every file that the results of a chain are read from."""
    shared = [chain.full_precision.metrics / "pretrain.csv"] if settings.pretrain.epochs else []
    return [*shared, *(chain.metrics / name for name in FILES)]


def missing_files(chain: Chain, params: Params) -> list[Path]:
    """Result files that a chain still lacks: none of them if it is finished."""
    return [path for path in result_files(chain, params.profiles[chain.profile]) if not path.is_file()]


def read_finished(chains: Sequence[Chain], params: Params) -> list[ChainResult]:
    """Results of the chains that are finished and made with today's settings, in the order given.

    The others are named on stderr and left out.

    Raises:
        QuantspikeError: a result file is damaged, or holds something else than it should.
    """
    unfinished = [chain for chain in chains if missing_files(chain, params)]
    results = [read_chain(chain, params) for chain in chains if chain not in unfinished]
    current = [result for result in results if not outdated(result)]
    _note_left_out("not finished", unfinished, len(chains))
    _note_left_out("of other settings", [result.chain for result in results if outdated(result)], len(chains))
    return current


def read_all(chains: Sequence[Chain], params: Params) -> list[ChainResult]:
    """Results of all these chains, in the order given.

    Raises:
        QuantspikeError: there is no chain, or one is not finished or was made with other settings; or a
            result file is damaged.
    """
    if not chains:
        raise QuantspikeError("the grid (run in params.yaml) holds no such chain: add its profile and model there")
    if missing := {chain.key: paths for chain in chains if (paths := missing_files(chain, params))}:
        first = next(iter(missing.values()))[0]
        raise QuantspikeError(f"not finished: {', '.join(missing)} ({first} is not there); run dvc repro")
    results = [read_chain(chain, params) for chain in chains]
    for result in results:
        if differences := outdated(result):
            raise QuantspikeError(f"{result.chain.key} was made with other settings ({differences[0]}); run dvc repro")
    return results


def outdated(result: ChainResult) -> list[str]:
    """Settings in params.yaml that are not those a result was made with, as far as its files tell; normally none."""
    settings = result.settings
    made_with = result.ann.made_with.settings
    pairs: dict[str, tuple[object, object]] = {
        name: (value, made_with.get(name)) for name, value in settings.training_settings.items()
    }
    pairs[f"neurons of {result.chain.model}"] = (result.architecture.neurons, result.ann.neurons)
    if result.conversion and result.snn and result.certificate:
        pairs["simulate.settle_limit"] = (settings.simulate.settle_limit, result.certificate.settle_limit)
        pairs["convert.weight_bits"] = (settings.convert.weight_bits, result.conversion.weight_bits)
        pairs["simulate.steps"] = (settings.simulate.steps, result.snn.steps)
    return [f"{name} is {now}, it had {then}" for name, (now, then) in pairs.items() if now != then]


def _note_left_out(why: str, left_out: Sequence[Chain], total: int) -> None:
    if left_out:
        names = ", ".join(chain.key for chain in left_out[:3]) + (" ..." if len(left_out) > 3 else "")
        print(
            f"note: left out, since {why}: {len(left_out)} of {total} chains ({names}); dvc repro runs them",
            file=sys.stderr,
        )


def read_chain(chain: Chain, params: Params) -> ChainResult:
    """Reads and checks the metrics folder of one chain.

    Raises:
        QuantspikeError: a result file is absent or damaged, or holds something else than it should.
    """
    folder = chain.metrics
    ann = _parse(folder / "ann.json", files.read_json(folder / "ann.json"), Ann)
    conversion = _read_spiking(chain, "conversion.json", "converted", Conversion)
    if conversion is not None and conversion.k != chain.k:
        raise QuantspikeError(f"{folder / 'conversion.json'} is of k = {conversion.k}, not {chain.k}: {_MENDING}")
    snn = _read_spiking(chain, "snn.json", "simulated", Snn)
    if snn is not None and snn.images != ann.images:
        raise QuantspikeError(
            f"{folder / 'snn.json'} is about {snn.images} images, but {folder / 'ann.json'} about {ann.images}: "
            "delete both and run dvc repro"
        )
    architecture = params.architecture(chain.profile, chain.model, classes=len(ann.data.classes))
    if snn is not None and ann.neurons == architecture.neurons and len(snn.largest_counts) != len(architecture.layers):
        raise QuantspikeError(
            f"{folder / 'snn.json'} has {len(snn.largest_counts)} largest_counts, expected one for each of the "
            f"{len(architecture.layers)} layers; {_MENDING}"
        )
    same_network = is_published_network(params, chain.profile, chain.model)
    return ChainResult(
        chain=chain,
        settings=params.profiles[chain.profile],
        architecture=architecture,
        ann=ann,
        training=_read_training(chain, params.profiles[chain.profile]),
        conversion=conversion,
        snn=snn,
        certificate=_read_spiking(chain, "certificate.json", "simulated", Certificate),
        steps=None if snn is None else _read_steps(folder / "snn.csv", snn.steps),
        layers=None if snn is None else _read_layers(folder / "layers.csv", architecture, ann.neurons),
        published=published(chain.model, chain.k) if same_network and ann.data.stands_for_cifar10 else None,
    )


_Kind = TypeVar("_Kind", bound=_Content)


def _parse(path: Path, content: Any, kind: type[_Kind]) -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file as a whole"
        raise QuantspikeError(f"{path} is of another shape: {place}: {problem['msg']}; {_MENDING}") from error


def _read_spiking(chain: Chain, name: str, flag: str, kind: type[_Kind]) -> _Kind | None:
    """A file whose `flag` tells whether there was anything to do: for fp32 there is not."""
    path = chain.metrics / name
    content = files.read_json(path)
    skipped = isinstance(content, dict) and content.get(flag) is False
    if skipped is chain.quantized:
        expected = "something else than" if chain.quantized else "only"
        raise QuantspikeError(f'{path} must hold {expected} {{"{flag}": false}} for k = {chain.k}; {_MENDING}')
    return _parse(path, content, kind) if chain.quantized else None


def _read_training(chain: Chain, settings: Profile) -> pd.DataFrame:
    """The phases below each other; the epochs of one count on from those before."""
    phases: list[pd.DataFrame] = []
    for path in result_files(chain, settings):
        if path.stem not in ("pretrain", "train", "finetune"):
            continue
        table = _read_table(path, ("epoch", *MEASURES), optional=("validation_accuracy",))
        _check_counter(path, table["epoch"], settings.pretrain.epochs if path.stem == "pretrain" else len(table))
        before = sum(map(len, phases))
        phases.append(table.assign(phase=path.stem, epoch=table["epoch"] + before))
    return pd.concat(phases, ignore_index=True)[["phase", "epoch", *MEASURES]]


def _read_steps(path: Path, steps: int) -> pd.DataFrame:
    table = _read_table(path, ("step", "accuracy", *COUNTS))
    _check_counter(path, table["step"], steps)
    return table


def _read_layers(path: Path, architecture: Architecture, neurons: int) -> pd.DataFrame:
    """Every step with every layer; of a network of other size, which is outdated, the layers are not looked at."""
    table = _read_table(path, ("step", "layer", "neurons", *COUNTS))
    expected = [(place, layer.neurons) for place, layer in enumerate(architecture.layers, start=1)]
    found = list(zip(table["layer"], table["neurons"], strict=True))
    steps = len(table) // len(expected)
    if neurons == architecture.neurons and found != expected * steps:
        raise QuantspikeError(f"{path} must have a line for each of the {len(expected)} layers in turn; {_MENDING}")
    return table


def _check_counter(path: Path, counter: pd.Series[int], last: int) -> None:
    if counter.tolist() != list(range(1, last + 1)):
        raise QuantspikeError(f"{path}: {counter.name} must count from 1 to {last}, line by line; {_MENDING}")


def _read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Reads a CSV file of numbers with exactly these columns; only the optional ones may be empty."""
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise QuantspikeError(f"{path} is not there: run the stage that writes it (dvc repro)") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise QuantspikeError(f"{path} is damaged: {error}; {_MENDING}") from error
    if tuple(table.columns) != columns:
        found = ",".join(str(name) for name in table.columns)
        raise QuantspikeError(f"{path} has the columns {found}, expected {','.join(columns)}; {_MENDING}")
    for name in columns:
        whole = table[name].notna().all() or name in optional
        if len(table) and not (whole and pd.api.types.is_numeric_dtype(table[name])):
            raise QuantspikeError(f"{path}: {name} must be a number in every line; {_MENDING}")
    return table
