"""`params.yaml` as typed sections, with every value checked before anything runs.

A setting that can change a number has no default here: it stands in params.yaml, where DVC watches it.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from quantspike.errors import QuantspikeError
from quantspike.strict_yaml import load_yaml, shortened

Precision = Literal["fp32"] | int
"""Precision of the activations: `fp32`, or k for steps of 2^-k."""

LARGEST_K = 24
"""An fp32 number has 24 significant bits: from there on rounding to 2^-k changes nothing."""

OptimizerName = Literal["adam", "muon"]
"""How weights are changed; see `quantspike.training.optimizer`."""

SEED_LIMIT = 2**32

Setting = str | int | float | bool | None
"""A value of params.yaml."""

TrainingStage = Literal["baseline", "train", "finetune"]
"""The stages that train a network."""

LARGEST_COUNT = 2**10 - 2
"""The largest count that a clip may allow."""

WEIGHT_BITS = range(4, 17)
"""Widths of the integer weights, sign included."""

_LARGEST = 10**9
"""The largest number of steps, images, epochs or pixels; more is a slip of the keyboard, and overflows somewhere."""

_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")

_RESERVED = ("resume", "downloads")
"""Folders in data/ that belong to no profile."""

_MOST_PROBLEMS = 20
"""Problems of a params file that are named at once."""


def _number(value: Any) -> Any:
    """Return `1e-3`, which YAML 1.1 takes for text, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def check_k(value: Any) -> int:
    """Return `value` if it is an allowed k.

    Raises:
        ValueError: it is not a whole number from 0 to 24.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        hint = "; the full-precision baseline is always there" if value == "fp32" else ""
        raise ValueError(f"k is a whole number from 0 to {LARGEST_K}, found {value!r}{hint}")
    if not 0 <= value <= LARGEST_K:
        raise ValueError(f"k counts binary places and lies between 0 and {LARGEST_K}, found {value}")
    return value


def check_clip(clip: float, k: int) -> None:
    """Check that a clip can be counted in steps of 2^-k, at most 1,022 of them.

    The largest threshold is 2^20, and theta (M + 1) must stay below 2^30.

    Raises:
        ValueError: it is not a positive multiple of 2^-k, or too large.
    """
    count = clip * 2**k
    if count < 1 or count % 1 or count > LARGEST_COUNT:
        raise ValueError(
            f"is {clip:g}, but with k = {k} activations are multiples of {0.5**k:g} and a clip is one of them up to "
            f"{LARGEST_COUNT * 0.5**k:g}"
        )


def _command(text: str) -> str:
    """Accept `python`, or a command that starts torchrun."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"a command was expected, found {text!r} ({error})") from None
    if words != ["python"] and not any(word.endswith(("torchrun", "torch.distributed.run")) for word in words):
        raise ValueError(f"expected python, or torchrun with its options, found {text!r}")
    return text


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"a name is 1 to 64 letters, digits and underscores (a number in quotes), found {value!r}")
    return value


LearningRate = Annotated[float, BeforeValidator(_number), Field(gt=0, le=10)]
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=_LARGEST)]
Picojoules = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Name = Annotated[str, BeforeValidator(_name)]


class Section(BaseModel):
    """A mapping of params.yaml: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Grid(Section):
    """The runs: every combination of profile, model, k and seed, and a baseline for each profile, model and seed."""

    profile: list[Name] = Field(min_length=1)
    model: list[Name] = Field(min_length=1)
    k: list[Annotated[int, BeforeValidator(check_k)]] = Field(min_length=1)
    seed: list[Annotated[int, Field(ge=0, lt=SEED_LIMIT)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_duplicates(self) -> Grid:
        for name in ("profile", "model", "k", "seed"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a duplicate: {values}")
        return self


class Model(Section):
    """A network as a layer string, such as `96C3-256C3-P2-1024`."""

    layers: str


class Data(Section):
    """Images of a profile.

    Attributes:
        source: `cifar10`, `digits` or a path; see `quantspike.data.sources`.
        crop: side of the square that the network sees, in pixels.
        held_out: number of training images that take the place of the test images, to choose settings with.
    """

    source: str = Field(min_length=1)
    crop: Count
    held_out: CountOrZero


class Recipe(Section):
    """How every phase of a profile trains.

    Attributes:
        optimizer: `adam` at a constant learning rate, or `muon` at one that falls linearly to 0 over each phase.
        batch_size: images per step, over all processes.
        label_smoothing: share of each label that is spread evenly over all classes.
        shift: how far crops lie from the center at most, in pixels and within the image.
        flip: which training images are mirrored left to right: `none`, a `random` half in each epoch, or `alternating`:
            each image in every second epoch, half of them in the first.
        brightness: the offset is uniform from minus to plus this, in grey levels.
        contrast: the factor is uniform from 1 minus to 1 plus this.
        clip: the largest activation, a multiple of 2^-k for every k of the grid; null for none.
        arithmetic: of convolutions, classifier and Muon: `fp32`, `bf16`, or `auto` for bf16 where the hardware has it.
    """

    optimizer: OptimizerName
    batch_size: Annotated[int, Field(ge=2, le=_LARGEST)]
    label_smoothing: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    shift: CountOrZero
    flip: Literal["none", "random", "alternating"]
    brightness: Annotated[float, BeforeValidator(_number), Field(ge=0, le=255)]
    contrast: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    clip: Annotated[float, BeforeValidator(_number), Field(gt=0)] | None
    arithmetic: Literal["auto", "bf16", "fp32"]


class Phase(Section):
    """Epochs from the weights, averages and moments of the phase before, and the learning rate that they start with."""

    epochs: Count
    learning_rate: LearningRate


class Train(Phase):
    """First phase of a quantized network: from initial weights (`scratch`) or from the trained `baseline`.

    `activation_penalty` is added to the loss of both phases for the synaptic operations that the activations stand
    for, as a share of the network's synapses.
    """

    start: Literal["baseline", "scratch"]
    activation_penalty: Annotated[float, BeforeValidator(_number), Field(ge=0)]


class Finetune(Phase):
    """Second phase of a quantized network; `integer_aware` trains it as the integers that it is converted to."""

    integer_aware: bool


class Convert(Section):
    """Width of the integer weights, sign included, in bits."""

    weight_bits: Annotated[int, Field(ge=WEIGHT_BITS[0], le=WEIGHT_BITS[-1])]


class Simulate(Section):
    """How the spiking network runs.

    Attributes:
        steps: T, the length of every curve and log.
        settle_limit: step after which an image that has not settled is reported as such.
        layer_delay: steps that each layer waits for the one before; of several, the results are those of the first.
        engine: `events`, `dense`, `reference`, or `auto` for the fastest on the device; all give the same integers.
        batch_size: images that are simulated together; changes speed and memory only.
        log_batch: images per batch of the published log format.
    """

    steps: Count
    settle_limit: Count
    layer_delay: list[CountOrZero] = Field(min_length=1)
    engine: Literal["auto", "reference", "dense", "events"]
    batch_size: Count
    log_batch: Count

    @model_validator(mode="after")
    def _values_fit(self) -> Simulate:
        if self.settle_limit < self.steps:
            raise ValueError(
                f"settle_limit is {self.settle_limit}, but every image runs for {self.steps} steps: "
                "set it to simulate.steps or more"
            )
        if len(set(self.layer_delay)) < len(self.layer_delay):
            raise ValueError(f"layer_delay holds a duplicate: {self.layer_delay}")
        return self


class Energy(Section):
    """Energy of operations and memory accesses in picojoules; see `quantspike.reporting.energy`.

    Attributes:
        fp32_mac: multiply-accumulate of 32-bit floating point numbers.
        int8_mac: multiply-accumulate of 8-bit integers.
        int32_add: addition of 32-bit integers.
        on_chip: access to 32 bits of a small on-chip memory.
        dram: access to 32 bits of DRAM.
    """

    fp32_mac: Picojoules
    int8_mac: Picojoules
    int32_add: Picojoules
    on_chip: Picojoules
    dram: Picojoules


class Profile(Section):
    """One protocol: images, network width and the settings of every stage, under the names of the stages.

    Attributes:
        data: the images.
        width: factor on the channels of every layer.
        recipe: what all phases of training share.
        baseline: the phases of the full-precision network.
        train: first phase of the quantized networks.
        finetune: second phase of the quantized networks.
        convert: the integer network.
        simulate: the spiking network.
    """

    data: Data
    width: Annotated[float, BeforeValidator(_number), Field(gt=0, le=8)]
    recipe: Recipe
    baseline: list[Phase] = Field(min_length=1)
    train: Train
    finetune: Finetune
    convert: Convert
    simulate: Simulate

    def training_settings(self, stage: TrainingStage) -> dict[str, Setting]:
        """Return what a network depends on after a stage, under dotted names such as `train.epochs`."""
        sections: dict[str, BaseModel] = {"recipe": self.recipe}
        if stage == "baseline" or self.train.start == "baseline":
            sections |= {f"baseline.{index}": phase for index, phase in enumerate(self.baseline)}
        if stage != "baseline":
            sections["train"] = self.train
        if stage == "finetune":
            sections["finetune"] = self.finetune
            if self.finetune.integer_aware:
                sections["convert"] = self.convert
        settings = {f"{name}.{key}": value for name, section in sections.items() for key, value in section}
        return {"width": self.width, "data.crop": self.data.crop, **settings}


class Params(Section):
    """All of `params.yaml`.

    DVC does not watch `launch` and `device`: a training on another device or in several
    processes gives other numbers, which its provenance tells, but is not repeated for it.

    Attributes:
        launch: command that starts the stages which several processes can share.
        device: where to compute; `auto` takes a GPU if there is one.
    """

    grid: Grid
    models: dict[Name, Model]
    profiles: dict[Name, Profile]
    energy: Energy
    launch: Annotated[str, AfterValidator(_command)] = "python"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$")] = "auto"

    @model_validator(mode="after")
    def _grid_is_defined(self) -> Params:
        for kind, names, known in (
            ("profile", self.grid.profile, self.profiles),
            ("model", self.grid.model, self.models),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"grid.{kind} names {name!r}, but {kind}s defines only {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _each_has_a_folder_of_its_own(self) -> Params:
        for kind, names, taken in (("profiles", self.profiles, _RESERVED), ("models", self.models, ())):
            folders = Counter(name.lower() for name in [*names, *taken])  # some file systems ignore case
            for name in names:
                if folders[name.lower()] > 1:
                    raise ValueError(
                        f"{kind}.{name} would share its folder: names must differ by more than capital letters, and no "
                        f"profile can be named {' or '.join(_RESERVED)}"
                    )
        return self


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check a params file.

    Raises:
        QuantspikeError: the file is absent, is not YAML, or holds a value that is not allowed;
            the message names every place.
    """
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise QuantspikeError(f"{path} must hold sections such as grid and profiles, found {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise QuantspikeError(f"{path} holds {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    """Return one line per problem: place, what is allowed, what was found."""
    lines = []
    for problem in error.errors()[:_MOST_PROBLEMS]:
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: this key is unknown{_suggestion(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: this key is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
            # Checks of the whole file name their place themselves.
            lines.append(f"{place}: {message}{found}" if place else message)
    if error.error_count() > len(lines):
        lines.append("...")
    found = "a value that is" if error.error_count() == 1 else f"{error.error_count()} values that are"
    return f"{found} not allowed:\n" + "\n".join(f"  {shortened(line)}" for line in lines)


def _suggestion(place: tuple[int | str, ...]) -> str:
    """Return the keys that are allowed where an unknown one was found."""
    return f"; allowed are {', '.join(_section(place[:-1]).model_fields)}"


def _section(place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the type of the section at a place."""
    section: type[BaseModel] = Params
    parts = iter(place)
    for part in parts:
        annotation = section.model_fields[str(part)].annotation
        if get_origin(annotation) in (dict, list):
            next(parts, None)  # a name of the user's own, such as that of a profile, or an index
            annotation = get_args(annotation)[-1]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return section
