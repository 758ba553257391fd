"""`params.yaml` read into typed sections, with every value checked before anything runs."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.recipes import RECIPES

Precision = Literal["fp32"] | int
"""Precision of the activations: `fp32`, or k for steps of 2^-k."""

LARGEST_K = 24
"""An fp32 number has 24 significant bits: from there on rounding to 2^-k changes nothing."""

SEED_LIMIT = 2**32

WEIGHT_BITS = range(4, 17)
"""Widths of the integer weights, sign included."""

_NAME = re.compile(r"[A-Za-z0-9_]+")


def _number(value: Any) -> Any:
    """Reads `1e-3`, which YAML 1.1 takes for text, as the number that was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def check_precision(value: Any) -> Precision:
    """Returns `value` if it is `fp32` or an integer k that is allowed.

    Raises:
        ValueError: it is neither.
    """
    if value == "fp32":
        return "fp32"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a precision is fp32 or an integer from 0 to {LARGEST_K}, found {value!r}")
    if not 0 <= value <= LARGEST_K:
        raise ValueError(f"k counts binary places and lies between 0 and {LARGEST_K}, found {value}")
    return value


def _command(text: str) -> str:
    """Accepts what a shell could split into words."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"a command was expected, found {text!r} ({error})") from None
    if not words:
        raise ValueError("a command was expected, such as python, found nothing")
    return text


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"a name is made of letters, digits and underscores, found {value!r}")
    return value


Rate = Annotated[float, BeforeValidator(_number), Field(gt=0, le=10)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Price = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Schedule = Literal["constant", "linear", "cosine"]
Name = Annotated[str, BeforeValidator(_name)]


class Section(BaseModel):
    """A mapping of params.yaml: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Run(Section):
    """The grid: every combination is one chain of stages."""

    profile: list[Name] = Field(min_length=1)
    model: list[Name] = Field(min_length=1)
    k: list[Annotated[Precision, BeforeValidator(check_precision)]] = Field(min_length=1)
    seed: list[Annotated[int, Field(ge=0, lt=SEED_LIMIT)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_duplicates(self) -> Run:
        for name in ("profile", "model", "k", "seed"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"run.{name} names a value twice: {values}")
        return self


class Model(Section):
    """A network as a layer string, such as `96C3-256C3-P2-1024`."""

    layers: str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Data(Section):
    """Where the images come from, and the side of the square that the network sees, in pixels.

    Attributes:
        source: see `quantspike.data.SOURCES`; of several the first one that is there.
        crop: side of the square.
    """

    source: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), BeforeValidator(_as_list)]
    crop: Count


class Pretrain(Section):
    """Phase before the first: in full precision and shared by every k, which goes on from it as the first phase.

    Attributes:
        epochs: passes over the training images; 0 for none, so that each k starts from the initial weights.
        learning_rate: Adam's rate, at its highest.
        schedule: as in `Train`. A rate that stays leaves the fall to the phases of each k.
    """

    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Rate = 1e-3
    schedule: Schedule = "constant"


class Train(Section):
    """First phase of training of each k, and what all phases share.

    What is not named takes the value that the recipe gives it (see `quantspike.recipes`).

    Attributes:
        recipe: `paper` or `strong`.
        epochs: passes over the training images.
        learning_rate: Adam's rate, at its highest.
        batch_size: images per step, over all processes.
        validation: number of training images that are held out and only measured.
        flip, padding, brightness, contrast, cutout: how images are varied, see `augmentation.Augmentation`.
        schedule: the rate stays `constant`, or falls to 0 along a line (`linear`) or half a `cosine`.
        warmup: share of the phase in which the rate first rises from 0, be it `train` or a `pretrain` before it.
            With a rate that falls again, this is known as a one-cycle schedule.
        weight_decay: decoupled from the gradient, times the rate; on weights, not on batch normalization.
        label_smoothing: share of the label that is spread over all classes.
        averaging: decay per step of a running average of weights and batch-norm averages, reached over the first
            steps; the average is what counts at the end of a phase. 0 for none.
        activation_penalty: added to the loss for each spike per neuron that the activations stand for.
        autocast: `bf16` or `off`; `auto` takes bf16 where the hardware multiplies it.
    """

    recipe: Literal["paper", "strong"] = "paper"
    epochs: Count
    learning_rate: Rate
    batch_size: Annotated[int, Field(ge=2)]
    validation: Annotated[int, Field(ge=0)] = 0
    flip: bool
    padding: Annotated[int, Field(ge=0)]
    brightness: Annotated[float, BeforeValidator(_number), Field(ge=0, le=255)]
    contrast: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
    cutout: Annotated[int, Field(ge=0)]
    schedule: Schedule
    warmup: Share
    weight_decay: Annotated[float, BeforeValidator(_number), Field(ge=0, le=10)]
    label_smoothing: Share
    averaging: Share
    activation_penalty: Annotated[float, BeforeValidator(_number), Field(ge=0)] = 0.0
    autocast: Literal["auto", "bf16", "off"] = "auto"


class Finetune(Section):
    """Second phase: goes on from the first with its weights, averages and Adam moments, and a rate of its own."""

    epochs: Count
    learning_rate: Rate
    schedule: Schedule


class Convert(Section):
    """Width of the integer weights, sign included, in bits."""

    weight_bits: Annotated[int, Field(ge=WEIGHT_BITS[0], le=WEIGHT_BITS[-1])] = 12


class Simulate(Section):
    """Steps T of every curve, the step by which an image must be at rest, and batch sizes in images."""

    steps: Count = 100
    settle_limit: Count = 1000
    engine: Literal["auto", "reference", "dense", "events"] = "auto"
    batch_size: Count = 50
    log_batch: Count = 50

    @model_validator(mode="after")
    def _limit_beyond_steps(self) -> Simulate:
        if self.settle_limit < self.steps:
            raise ValueError(
                f"settle_limit is {self.settle_limit}, but images are watched for all {self.steps} steps: "
                "set it to simulate.steps or more"
            )
        return self


class Energy(Section):
    """Prices of operations and memory accesses, in picojoules; see `quantspike.energy`.

    The defaults are those of a 45 nm process after Horowitz (ISSCC 2014).

    Attributes:
        fp32_mac: multiply-accumulate of 32-bit floating point numbers.
        int8_mac: multiply-accumulate of 8-bit whole numbers.
        int32_add: addition of 32-bit whole numbers.
        on_chip: access to 32 bits of a small on-chip memory.
        dram: access to 32 bits of DRAM.
    """

    fp32_mac: Price = 4.6
    int8_mac: Price = 0.23
    int32_add: Price = 0.1
    on_chip: Price = 5.0
    dram: Price = 640.0


class Profile(Section):
    """One protocol: data, network width and the settings of every stage.

    All of them must be there, since DVC watches them by name; what a section leaves out takes its default.
    """

    data: Data
    width: Annotated[float, BeforeValidator(_number), Field(gt=0, le=8)]
    pretrain: Pretrain = Field(examples=["{epochs: 0}"])  # as before there was such a phase
    train: Train
    finetune: Finetune
    convert: Convert
    simulate: Simulate

    @property
    def training_settings(self) -> dict[str, str | int | float | bool]:
        """What a trained network depends on, under dotted names such as `train.epochs`."""
        sections = {
            "pretrain": self.pretrain.model_dump() if self.pretrain.epochs else {"epochs": 0},
            "train": self.train.model_dump(),
            "finetune": self.finetune.model_dump(),
        }
        settings = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
        return {"width": self.width, "data.crop": self.data.crop, **settings}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, content: Any) -> Any:
        """Adds what the recipe says of settings that are not named; what is malformed is left to the checks."""
        if not isinstance(content, dict):
            return content
        train = content.get("train")
        name = train.get("recipe") if isinstance(train, dict) else None
        recipe = RECIPES.get(name, RECIPES["paper"]) if isinstance(name, str) else RECIPES["paper"]
        filled = {
            section: settings | content[section]
            for section, settings in recipe.items()
            if isinstance(content.get(section), dict)
        }
        return content | filled

    @model_validator(mode="after")
    def _cutout_within_crop(self) -> Profile:
        if self.train.cutout > self.data.crop:
            raise ValueError(
                f"train.cutout is {self.train.cutout}, but the network sees only {self.data.crop} x {self.data.crop} "
                f"pixels (data.crop): set it to {self.data.crop} or less"
            )
        return self


class Params(Section):
    """All of `params.yaml`.

    What stands after `energy` changes no result but for its last digits, so DVC does not watch it.

    Attributes:
        energy: prices of operations and memory accesses, from which figures estimate energies.
        launch: command that starts the stages which several processes can share.
        device: where to compute; `auto` takes a GPU if there is one.
        compile: whether torch.compile builds the training's forward and backward pass.
        checkpoint_minutes: longest time between two states from which a killed training goes on.
    """

    run: Run
    models: dict[Name, Model]
    profiles: dict[Name, Profile]
    energy: Energy
    launch: Annotated[str, AfterValidator(_command)] = "python"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    compile: bool = False
    checkpoint_minutes: Annotated[float, BeforeValidator(_number), Field(gt=0)] = 10.0

    @model_validator(mode="after")
    def _grid_is_defined(self) -> Params:
        for kind, wanted, known in (
            ("profile", self.run.profile, self.profiles),
            ("model", self.run.model, self.models),
        ):
            for name in wanted:
                if name not in known:
                    raise ValueError(f"run.{kind} names {name!r}, but {kind}s defines only {', '.join(known)}")
        for profile, model in product(self.run.profile, self.run.model):
            try:
                self.architecture(profile, model)
            except QuantspikeError as error:
                raise ValueError(f"models.{model}.layers with profiles.{profile}: {error}") from error
        return self

    def architecture(self, profile: str, model: str, image_channels: int = 3, classes: int = 10) -> Architecture:
        """The layers of `model` at the width and image size of `profile`.

        Args:
            profile: name of the profile.
            model: name of the network.
            image_channels: colour channels of the images.
            classes: number of classes.

        Raises:
            QuantspikeError: the layer string does not parse, or does not fit the image size.
        """
        settings = self.profiles[profile]
        return Architecture.parse(
            self.models[model].layers,
            image_size=settings.data.crop,
            image_channels=image_channels,
            classes=classes,
            width=settings.width,
        )


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks a params file.

    Raises:
        QuantspikeError: the file is absent, is no YAML, or holds something that is not allowed;
            the message names every place.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise QuantspikeError(f"{path} is not here: run from the project's folder, or name it with --params") from None
    except OSError as error:
        raise QuantspikeError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise QuantspikeError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise QuantspikeError(f"{path} must hold the sections run, models and profiles, found {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise QuantspikeError(f"{path} holds {_describe(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in the mapping at{node.start_mark}")
        return super().construct_mapping(node, deep)


def _describe(error: ValidationError) -> str:
    """Every complaint on a line of its own: place, what is allowed, what was found."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: this key is unknown{_suggestion(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: this key is missing{_example(problem['loc'])}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
            lines.append(
                f"{place}: {message}{found}" if place else message
            )  # checks of the whole file name their place
    count = "a value that is not allowed" if len(lines) == 1 else f"{len(lines)} values that are not allowed"
    return f"{count}:\n" + "\n".join(f"  {line}" for line in lines)


def _suggestion(place: tuple[int | str, ...]) -> str:
    """The keys that may stand where an unknown one was found."""
    return f"; allowed are {', '.join(_section(place[:-1]).model_fields)}"


def _example(place: tuple[int | str, ...]) -> str:
    """What may stand where nothing was found, if the section has an example of it."""
    examples = _section(place[:-1]).model_fields[str(place[-1])].examples
    return f"; write {place[-1]}: {examples[0]}" if examples else ""


def _section(place: tuple[int | str, ...]) -> type[BaseModel]:
    """The type of the section that stands at a place."""
    section: type[BaseModel] = Params
    parts = iter(place)
    for part in parts:
        annotation = section.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # a name of the user's own, such as that of a profile
            annotation = get_args(annotation)[1]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return section
