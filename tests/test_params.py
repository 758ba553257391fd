"""params.yaml: what is read from it, and what is said about everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from quantspike.errors import QuantspikeError
from quantspike.params import LARGEST_K, Energy, Finetune, Pretrain, Train, check_precision, load_params
from quantspike.recipes import RECIPES

ROOT = Path(__file__).parents[1]
Edit = Callable[..., Path]


def complaint(path: Path) -> str:
    """What is said about a params file, one line or several."""
    with pytest.raises(QuantspikeError) as caught:
        load_params(path)
    return str(caught.value)


# The project's own file


def test_the_paper_profile_is_the_published_protocol() -> None:
    paper = load_params(ROOT / "params.yaml").profiles["paper"]
    assert paper.model_dump() == {
        "data": {"source": ["cifar10"], "crop": 24},
        "width": 1.0,
        "pretrain": {"epochs": 0, "learning_rate": 1e-3, "schedule": "constant"},
        "train": {
            "recipe": "paper",
            "epochs": 100,
            "learning_rate": 1e-3,
            "batch_size": 200,  # 50,000 images: 250 steps an epoch
            "validation": 0,
            "flip": True,
            "padding": 0,
            "brightness": 63.0,
            "contrast": 0.8,
            "cutout": 0,
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "averaging": 0.0,
            "activation_penalty": 0.0,
            "autocast": "auto",
        },
        "finetune": {"epochs": 100, "learning_rate": 1e-4, "schedule": "constant"},
        "convert": {"weight_bits": 12},
        "simulate": {"steps": 100, "settle_limit": 1000, "engine": "auto", "batch_size": 50, "log_batch": 50},
    }


def test_the_prices_of_the_project_are_those_of_a_45_nanometre_process() -> None:
    # Horowitz, ISSCC 2014, in pJ: a floating point addition 0.9 and multiplication 3.7; on 8 bits 0.03 and 0.2.
    prices = {"fp32_mac": 0.9 + 3.7, "int8_mac": 0.03 + 0.2, "int32_add": 0.1, "on_chip": 5.0, "dram": 640.0}
    assert load_params(ROOT / "params.yaml").energy.model_dump() == pytest.approx(prices)
    # They stand in the file for all to see, and those that are left out are the same.
    assert load_params(ROOT / "params.yaml").energy == Energy()


def test_the_grid_covers_both_published_networks_at_all_published_precisions() -> None:
    params = load_params(ROOT / "params.yaml")
    assert "paper" in params.run.profile
    assert (params.run.model, params.run.k) == (["cnn1", "cnn2"], ["fp32", 0, 1, 2])


@pytest.mark.parametrize(
    ("model", "neurons", "layers"),
    [
        ("cnn1", 336_128, "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"),
        ("cnn2", 411_648, "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512"),
    ],
)
def test_the_models_are_the_published_networks(model: str, neurons: int, layers: str) -> None:
    architecture = load_params(ROOT / "params.yaml").architecture("paper", model)
    assert (architecture.text, architecture.neurons) == (layers, neurons)
    assert (architecture.image_size, architecture.image_channels, architecture.classes) == (24, 3, 10)


def test_every_profile_of_the_project_fits_every_model() -> None:
    params = load_params(ROOT / "params.yaml")
    for profile in params.profiles:
        for model in params.models:
            assert params.architecture(profile, model).layers[-1].out_size == 1


def test_the_architecture_of_a_profile_has_its_width_and_crop(write_params: Edit) -> None:
    params = load_params(write_params())
    architecture = params.architecture("tiny", "small", image_channels=1, classes=7)
    assert (architecture.text, architecture.image_size) == ("4C3-P2-8C3-P2-8", 8)
    assert (architecture.image_channels, architecture.classes) == (1, 7)


# Values that are fine


def test_what_is_left_out_takes_the_published_value(write_params: Edit) -> None:
    left_out = {"device": None, "profiles.tiny.train.validation": None, "profiles.tiny.train.flip": None}
    params = load_params(write_params(left_out | {"profiles.tiny.convert": {}, "profiles.tiny.simulate": {}}))
    profile = params.profiles["tiny"]
    assert (profile.convert.weight_bits, params.device) == (12, "auto")
    assert (profile.train.recipe, profile.train.validation, profile.train.flip) == ("paper", 0, True)
    assert (profile.simulate.steps, profile.simulate.settle_limit) == (100, 1000)


@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_a_recipe_fills_in_what_is_not_named(recipe: str, write_params: Edit) -> None:
    left_out = {"profiles.tiny.train.recipe": recipe, "profiles.tiny.train.flip": None}
    profile = load_params(write_params(left_out)).profiles["tiny"]
    train, finetune = profile.train.model_dump(), profile.finetune.model_dump()
    assert {name: train[name] for name in RECIPES[recipe]["train"]} == RECIPES[recipe]["train"]
    assert finetune == {"epochs": 1, "learning_rate": 0.0003} | RECIPES[recipe]["finetune"]
    assert (train["recipe"], train["epochs"], train["validation"]) == (recipe, 1, 100)


def test_what_is_named_overrides_the_recipe(write_params: Edit) -> None:
    named = {"padding": 1, "cutout": 0, "schedule": "linear", "weight_decay": 0.0, "averaging": 0.5, "flip": False}
    changes = {f"profiles.tiny.train.{name}": value for name, value in named.items()}
    changes |= {"profiles.tiny.train.recipe": "strong", "profiles.tiny.finetune.schedule": "constant"}
    profile = load_params(write_params(changes)).profiles["tiny"]
    train = profile.train.model_dump()
    assert {name: train[name] for name in named} == named
    others = {name: value for name, value in RECIPES["strong"]["train"].items() if name not in named}
    assert {name: train[name] for name in others} == others
    assert profile.finetune.schedule == "constant"


def test_recipes_name_the_same_settings_and_each_is_one_of_its_section() -> None:
    for recipe in RECIPES.values():
        assert list(recipe) == ["train", "finetune"]
        assert list(recipe["train"]) == list(RECIPES["paper"]["train"])
        assert list(recipe["finetune"]) == list(RECIPES["paper"]["finetune"])
    assert set(RECIPES["paper"]["train"]) < set(Train.model_fields)
    assert set(RECIPES["paper"]["finetune"]) < set(Finetune.model_fields)
    assert set(get_args(Train.model_fields["recipe"].annotation)) == set(RECIPES)


def test_one_profile_does_not_change_the_recipe_of_another(write_params: Edit, params_content: dict[str, Any]) -> None:
    tiny = params_content["profiles"]["tiny"]
    other = tiny | {"train": tiny["train"] | {"recipe": "strong", "label_smoothing": 0.3}}
    profiles = load_params(write_params({"profiles.other": other})).profiles
    assert (profiles["other"].train.label_smoothing, profiles["tiny"].train.label_smoothing) == (0.3, 0.0)
    assert RECIPES["strong"]["train"]["label_smoothing"] == 0.1


@pytest.mark.parametrize("command", ["python", "torchrun --standalone --nproc-per-node 4", "srun 'my python'"])
def test_a_launch_command_is_kept_as_it_is(command: str, write_params: Edit) -> None:
    assert load_params(write_params({"launch": command})).launch == command


def test_unless_it_is_named_one_process_trains_without_compiling(write_params: Edit) -> None:
    params = load_params(write_params())
    assert (params.launch, params.compile) == ("python", False)


def test_a_rate_that_yaml_takes_for_text_is_the_number_that_was_meant(tmp_path: Path, write_params: Edit) -> None:
    path = write_params()
    path.write_text(path.read_text().replace("0.003", "1e-3").replace("0.5", "5e-1"))
    profile = load_params(path).profiles["tiny"]
    assert (profile.train.learning_rate, profile.width) == (0.001, 0.5)


def test_a_price_may_be_nothing_and_the_others_stay(write_params: Edit) -> None:
    assert load_params(write_params()).energy == Energy()
    prices = load_params(write_params({"energy": {"dram": 0, "on_chip": "1e1"}})).energy
    assert prices == Energy(dram=0.0, on_chip=10.0)
    assert prices.fp32_mac == 4.6


def test_a_whole_number_is_fine_as_a_rate(write_params: Edit) -> None:
    assert load_params(write_params({"profiles.tiny.finetune.learning_rate": 1})).profiles["tiny"].width == 0.5


@pytest.mark.parametrize("k", ["fp32", 0, LARGEST_K])
def test_fp32_and_every_k_from_0_to_the_limit_are_precisions(k: Any, write_params: Edit) -> None:
    assert check_precision(k) == k
    assert load_params(write_params({"run.k": [k]})).run.k == [k]


def test_settling_may_be_watched_for_exactly_as_long_as_the_curves(write_params: Edit) -> None:
    changes = {"profiles.tiny.simulate.steps": 7, "profiles.tiny.simulate.settle_limit": 7}
    assert load_params(write_params(changes)).profiles["tiny"].simulate.settle_limit == 7


def test_all_that_the_network_sees_may_be_cut_out(write_params: Edit) -> None:
    train = load_params(write_params({"profiles.tiny.train.cutout": 8})).profiles["tiny"].train
    assert train.cutout == 8


@pytest.mark.parametrize("bits", [4, 16])
def test_weights_have_4_to_16_bits(bits: int, write_params: Edit) -> None:
    path = write_params({"profiles.tiny.convert.weight_bits": bits})
    assert load_params(path).profiles["tiny"].convert.weight_bits == bits


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "cuda:12"])
def test_a_device_may_be_named_by_kind_and_number(device: str, write_params: Edit) -> None:
    assert load_params(write_params({"device": device})).device == device


# Values that are not


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("lunch", "run, models, profiles, energy, launch, device, compile, checkpoint_minutes"),
        ("run.epochs", "profile, model, k, seed"),
        ("models.small.width", "layers"),
        ("profiles.tiny.trian", "data, width, pretrain, train, finetune, convert, simulate"),
        ("profiles.tiny.data.size", "source, crop"),
        (
            "profiles.tiny.train.lr",
            "recipe, epochs, learning_rate, batch_size, validation, flip, padding, brightness, contrast, cutout, "
            "schedule, warmup, weight_decay, label_smoothing, averaging, activation_penalty, autocast",
        ),
        ("profiles.tiny.pretrain.batch_size", "epochs, learning_rate, schedule"),
        ("profiles.tiny.finetune.batch_size", "epochs, learning_rate, schedule"),
        ("profiles.tiny.convert.bits", "weight_bits"),
        ("profiles.tiny.simulate.T", "steps, settle_limit, engine, batch_size, log_batch"),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_that_stand_there(place: str, allowed: str, write_params: Edit) -> None:
    assert complaint(write_params({place: 1})).endswith(f"\n  {place}: this key is unknown; allowed are {allowed}")


@pytest.mark.parametrize("profile", ["run", "train", "models", "data"])
def test_a_profile_may_have_the_name_of_a_section(
    profile: str, write_params: Edit, params_content: dict[str, Any]
) -> None:
    content = params_content["profiles"]["tiny"] | {"colour": "red"}
    expected = "allowed are data, width, pretrain, train, finetune, convert, simulate"
    assert complaint(write_params({f"profiles.{profile}": content})).endswith(
        f"colour: this key is unknown; {expected}"
    )


@pytest.mark.parametrize(
    "place",
    [
        "run",
        "models",
        "profiles",
        "run.k",
        "run.seed",
        "models.small.layers",
        "profiles.tiny.width",
        "profiles.tiny.convert",
        "profiles.tiny.simulate",
        "profiles.tiny.data",
        "profiles.tiny.data.crop",
        "profiles.tiny.train",
        "profiles.tiny.train.learning_rate",
        "profiles.tiny.finetune",
    ],
)
def test_a_missing_key_is_named(place: str, write_params: Edit) -> None:
    assert f"\n  {place}: this key is missing" in complaint(write_params({place: None}))


def test_a_profile_from_before_there_was_a_pre_training_is_told_what_to_write(write_params: Edit) -> None:
    told = complaint(write_params({"profiles.tiny.pretrain": None}))
    assert "profiles.tiny.pretrain: this key is missing; write pretrain: {epochs: 0}" in told


@pytest.mark.parametrize("train", [None, [1]])
def test_a_missing_section_is_not_blamed_on_what_a_recipe_would_fill_in(train: Any, write_params: Edit) -> None:
    told = complaint(write_params({"profiles.tiny.train": train}))
    assert "params.yaml holds a value that is not allowed:\n  profiles.tiny.train: " in told


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("run.k", [0, -1], "run.k.1: k counts binary places and lies between 0 and 24, found -1"),
        ("run.k", [25], "run.k.0: k counts binary places and lies between 0 and 24, found 25"),
        ("run.k", [True], "run.k.0: a precision is fp32 or an integer from 0 to 24, found True"),
        ("run.k", [1.0], "run.k.0: a precision is fp32 or an integer from 0 to 24, found 1.0"),
        ("run.k", ["2"], "run.k.0: a precision is fp32 or an integer from 0 to 24, found '2'"),
        ("run.k", ["fp16"], "run.k.0: a precision is fp32 or an integer from 0 to 24, found 'fp16'"),
        ("run.k", [[1]], r"run.k.0: a precision is fp32 or an integer from 0 to 24, found [1]"),
        ("run.k", [1, 0, 1], "run.k names a value twice: [1, 0, 1]"),
        ("run.k", [], "run.k: List should have at least 1 item"),
        ("run.k", 2, "run.k: Input should be a valid list (found 2)"),
        ("run.profile", [], "run.profile: List should have at least 1 item"),
        ("run.profile", "tiny", "run.profile: Input should be a valid list (found 'tiny')"),
        ("run.profile", ["tiny", "tiny"], "run.profile names a value twice: ['tiny', 'tiny']"),
        ("run.profile", ["papr"], "run.profile names 'papr', but profiles defines only tiny"),
        ("run.model", ["small", "cnn3"], "run.model names 'cnn3', but models defines only small"),
        ("run.model", ["a-b"], "run.model.0: a name is made of letters, digits and underscores, found 'a-b'"),
        ("run.model", ["../x"], "run.model.0: a name is made of letters, digits and underscores, found '../x'"),
        ("run.model", [1], "run.model.0: a name is made of letters, digits and underscores, found 1"),
        ("run.seed", [0, 0], "run.seed names a value twice: [0, 0]"),
        ("run.seed", [-1], "run.seed.0: Input should be greater than or equal to 0 (found -1)"),
        ("run.seed", [2**32], "run.seed.0: Input should be less than 4294967296 (found 4294967296)"),
        ("run.seed", [True], "run.seed.0: Input should be a valid integer (found True)"),
        ("models.small.layers", 96, "models.small.layers: Input should be a valid string (found 96)"),
        ("profiles.tiny.width", 0, "profiles.tiny.width: Input should be greater than 0 (found 0)"),
        ("profiles.tiny.data.source", "", "profiles.tiny.data.source.0: String should have at least 1 character"),
        ("profiles.tiny.data.source", [], "profiles.tiny.data.source: List should have at least 1 item"),
        ("profiles.tiny.data.source", 3, "profiles.tiny.data.source: Input should be a valid list"),
        ("profiles.tiny.data.crop", 0, "profiles.tiny.data.crop: Input should be greater than or equal to 1 (found 0)"),
        ("profiles.tiny.train", [1], "profiles.tiny.train: Input should be a valid dictionary"),
        (
            "profiles.tiny.train.recipe",
            "best",
            "profiles.tiny.train.recipe: Input should be 'paper' or 'strong' (found 'best')",
        ),
        (
            "profiles.tiny.train.recipe",
            ["strong"],
            "train.recipe: Input should be 'paper' or 'strong' (found ['strong'])",
        ),
        ("profiles.tiny.train.epochs", 0, "profiles.tiny.train.epochs: Input should be greater than or equal to 1"),
        (
            "profiles.tiny.train.epochs",
            True,
            "profiles.tiny.train.epochs: Input should be a valid integer (found True)",
        ),
        ("profiles.tiny.train.epochs", 2.5, "profiles.tiny.train.epochs: Input should be a valid integer (found 2.5)"),
        ("profiles.tiny.train.batch_size", 1, "batch_size: Input should be greater than or equal to 2 (found 1)"),
        ("profiles.tiny.train.batch_size", "50", "batch_size: Input should be a valid integer (found '50')"),
        ("profiles.tiny.train.validation", -1, "validation: Input should be greater than or equal to 0 (found -1)"),
        ("profiles.tiny.train.flip", "yes", "profiles.tiny.train.flip: Input should be a valid boolean (found 'yes')"),
        ("profiles.tiny.train.padding", -1, "padding: Input should be greater than or equal to 0 (found -1)"),
        ("profiles.tiny.train.padding", 1.5, "padding: Input should be a valid integer (found 1.5)"),
        ("profiles.tiny.train.brightness", 256, "brightness: Input should be less than or equal to 255 (found 256)"),
        ("profiles.tiny.train.contrast", 1, "contrast: Input should be less than 1 (found 1)"),
        ("profiles.tiny.train.cutout", -1, "cutout: Input should be greater than or equal to 0 (found -1)"),
        (
            "profiles.tiny.train.cutout",
            9,
            "profiles.tiny: train.cutout is 9, but the network sees only 8 x 8 pixels (data.crop): set it to 8 or less",
        ),
        (
            "profiles.tiny.train.schedule",
            "step",
            "train.schedule: Input should be 'constant', 'linear' or 'cosine' (found 'step')",
        ),
        (
            "profiles.tiny.finetune.schedule",
            "step",
            "finetune.schedule: Input should be 'constant', 'linear' or 'cosine' (found 'step')",
        ),
        ("profiles.tiny.train.warmup", 1, "warmup: Input should be less than 1 (found 1)"),
        ("profiles.tiny.train.weight_decay", -0.1, "weight_decay: Input should be greater than or equal to 0"),
        ("profiles.tiny.train.label_smoothing", 1.0, "label_smoothing: Input should be less than 1 (found 1.0)"),
        ("profiles.tiny.train.averaging", 1, "averaging: Input should be less than 1 (found 1)"),
        ("profiles.tiny.train.averaging", -0.5, "averaging: Input should be greater than or equal to 0 (found -0.5)"),
        (
            "profiles.tiny.train.activation_penalty",
            -1,
            "activation_penalty: Input should be greater than or equal to 0",
        ),
        ("profiles.tiny.train.autocast", "fp16", "autocast: Input should be 'auto', 'bf16' or 'off' (found 'fp16')"),
        ("profiles.tiny.train.autocast", True, "autocast: Input should be 'auto', 'bf16' or 'off' (found True)"),
        ("checkpoint_minutes", 0, "checkpoint_minutes: Input should be greater than 0 (found 0)"),
        ("launch", "", "launch: a command was expected, such as python, found nothing"),
        ("launch", "  ", "launch: a command was expected, such as python, found nothing"),
        ("launch", "torchrun 'x", 'launch: a command was expected, found "torchrun \'x" (No closing quotation)'),
        ("launch", 4, "launch: Input should be a valid string (found 4)"),
        ("launch", ["torchrun"], "launch: Input should be a valid string (found ['torchrun'])"),
        ("compile", "yes", "compile: Input should be a valid boolean (found 'yes')"),
        ("profiles.tiny.convert.weight_bits", 3, "weight_bits: Input should be greater than or equal to 4 (found 3)"),
        ("profiles.tiny.convert.weight_bits", 17, "weight_bits: Input should be less than or equal to 16 (found 17)"),
        (
            "profiles.tiny.simulate.engine",
            "fast",
            "engine: Input should be 'auto', 'reference', 'dense' or 'events' (found 'fast')",
        ),
        ("profiles.tiny.simulate.steps", 0, "simulate.steps: Input should be greater than or equal to 1 (found 0)"),
        (
            "profiles.tiny.simulate.settle_limit",
            19,
            "profiles.tiny.simulate: settle_limit is 19, but images are watched for all 20 steps",
        ),
        ("energy", {"fp32_mac": -4.6}, "energy.fp32_mac: Input should be greater than or equal to 0 (found -4.6)"),
        ("energy", {"dram": -1}, "energy.dram: Input should be greater than or equal to 0 (found -1)"),
        ("energy", {"on_chip": float("nan")}, "energy.on_chip: Input should be a finite number (found nan)"),
        ("energy", {"int32_add": True}, "energy.int32_add: Input should be a valid number (found True)"),
        (
            "energy",
            {"fp16_mac": 1},
            "energy.fp16_mac: this key is unknown; allowed are fp32_mac, int8_mac, int32_add, on_chip, dram",
        ),
        ("energy", 5, "energy: Input should be a valid dictionary"),
        ("device", "gpu", "(found 'gpu')"),
        ("device", "cuda:", "(found 'cuda:')"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_place(
    place: str, value: Any, message: str, write_params: Edit
) -> None:
    told = complaint(write_params({place: value}))
    assert "params.yaml holds a value that is not allowed:" in told
    assert message in told
    assert place.split(".")[-1] in told


@pytest.mark.parametrize("phase", ["train", "finetune"])
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0, "Input should be greater than 0 (found 0)"),
        (-1e-3, "Input should be greater than 0 (found -0.001)"),
        (11, "Input should be less than or equal to 10 (found 11)"),
        (float("nan"), "Input should be a finite number (found nan)"),
        (float("inf"), "Input should be a finite number (found inf)"),
        ("nan", "Input should be a finite number (found nan)"),
        ("fast", "Input should be a valid number (found 'fast')"),
        (True, "Input should be a valid number (found True)"),
        ([1e-3], "Input should be a valid number (found [0.001])"),
    ],
)
def test_a_rate_is_a_positive_finite_number(phase: str, rate: Any, message: str, write_params: Edit) -> None:
    place = f"profiles.tiny.{phase}.learning_rate"
    assert f"\n  {place}: {message}" in complaint(write_params({place: rate}))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("8C3-Q2-16", "layer 2 ('Q2') of '8C3-Q2-16' is not understood: write cCn"),
        ("", "layer 1 ('') of '' is not understood"),
        ("8C3", "'8C3' has no head"),
        ("8C3-P2-P2-P2-P2-16", "layer 5 ('P2') of '8C3-P2-P2-P2-P2-16': the map is 1x1 there, which 2 does not divide"),
        ("8C3-P3-16", "layer 2 ('P3') of '8C3-P3-16': the map is 8x8 there, which 3 does not divide"),
        ("8C3-16-8C3", "layer 3 ('8C3') of '8C3-16-8C3': no convolution may follow the head"),
    ],
)
def test_a_layer_string_that_cannot_be_built_is_named_with_model_and_profile(
    layers: str, message: str, write_params: Edit
) -> None:
    assert f"models.small.layers with profiles.tiny: {message}" in complaint(
        write_params({"models.small.layers": layers})
    )


def test_pooling_that_meets_an_odd_map_names_the_crop(write_params: Edit) -> None:
    told = complaint(write_params({"profiles.tiny.data.crop": 6}))  # 6 -> 3 after the first P2
    assert "layer 4 ('P2')" in told
    assert "the map is 3x3 there, which 2 does not divide" in told
    assert "data.crop, now 6" in told


def test_all_mistakes_are_named_at_once(write_params: Edit) -> None:
    told = complaint(write_params({"run.k": [-1, 99], "profiles.tiny.train.epochs": 0, "colour": "red"}))
    assert "holds 4 values that are not allowed:" in told
    for place in ("run.k.0: ", "run.k.1: ", "profiles.tiny.train.epochs: ", "colour: "):
        assert f"\n  {place}" in told


# Files that are not what they should be


def test_an_absent_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"absent\.yaml is not here: run from the project's folder"):
        load_params(tmp_path / "absent.yaml")


def test_a_folder_in_place_of_the_file_is_a_user_error(tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run: [1", "is no valid YAML: while parsing"),
        ("run:\n\t- a", "is no valid YAML"),
        ("{[a]: b}", "is no valid YAML"),
        ("run: !!python/object:os.system x", "is no valid YAML: could not determine a constructor"),
        ("[1, 2]", "must hold the sections run, models and profiles, found list"),
        ("hello", "must hold the sections run, models and profiles, found str"),
        ("", "must hold the sections run, models and profiles, found NoneType"),
        ("a: 1\n---\nb: 2", "is no valid YAML: expected a single document"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    assert message in complaint(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "params.yaml is no valid YAML" in complaint(path)


@pytest.mark.parametrize("value", ["2026-13-45", "!!int many"])
def test_a_value_that_yaml_itself_cannot_build_is_a_user_error(value: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"run: {value}\n")
    assert "params.yaml" in complaint(path)


def test_a_key_that_stands_twice_is_refused(write_params: Edit) -> None:
    path = write_params()
    path.write_text(path.read_text() + "device: auto\n")
    assert "device" in complaint(path)


def test_params_cannot_be_changed_once_read(write_params: Edit) -> None:
    params = load_params(write_params())
    with pytest.raises(ValueError, match="frozen"):
        params.profiles["tiny"].train.epochs = 5  # type: ignore[misc]


def test_a_network_depends_on_every_setting_of_the_sections_that_dvc_watches_for_it() -> None:
    # A setting that changes no network must lie elsewhere, or changing it would train finished chains again.
    profile = load_params(ROOT / "params.yaml").profiles["paper"]
    watched = [f"train.{name}" for name in Train.model_fields] + [f"finetune.{name}" for name in Finetune.model_fields]
    assert list(profile.training_settings) == ["width", "data.crop", "pretrain.epochs", *watched]
    pretrained = profile.model_copy(update={"pretrain": Pretrain(epochs=3)})
    pretraining = [f"pretrain.{name}" for name in Pretrain.model_fields]
    assert list(pretrained.training_settings) == ["width", "data.crop", *pretraining, *watched]


def test_how_to_pretrain_for_no_epochs_changes_no_network() -> None:
    profile = load_params(ROOT / "params.yaml").profiles["paper"]
    other = profile.model_copy(update={"pretrain": Pretrain(epochs=0, learning_rate=0.5, schedule="linear")})
    assert other.training_settings == profile.training_settings
