"""params.yaml: what it means, and that every mistake is named with its place."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from conftest import PARAMS, Edit
from hostile import JSON, fuzz, mutations
from quantspike.errors import QuantspikeError
from quantspike.params import LARGEST_K, load_params
from quantspike.workflow.cli import load_checked_params

ROOT = Path(__file__).parents[1]
TRAINED_WITH = {
    "optimizer": "adam",
    "label_smoothing": 0,
    "shift": 4,
    "flip": "random",
    "brightness": 63.0,
    "contrast": 0.8,
    "clip": None,
}


def error_of(path: Path) -> str:
    """Return the message about a params file."""
    with pytest.raises(QuantspikeError) as caught:
        load_params(path)
    return str(caught.value)


# The project's own file


def test_yaml_merge_keys_are_resolved(write_params: Edit) -> None:
    path = write_params()
    shared, own = "  a: &a {layers: 8C3-16}\n", "  b: {<<: *a}\n"
    path.write_text(path.read_text().replace("models:\n", f"models:\n{shared}{own}"))
    assert load_params(path).models["b"].layers == "8C3-16"


def test_a_key_of_its_own_replaces_a_merged_one_also_where_sections_are_merged_in_turn(write_params: Edit) -> None:
    path = write_params()
    models = "  a: &a {layers: 8C3-16}\n  b: &b {<<: *a, layers: 4C3-16}\n  c: {<<: *b, layers: 2C3-16}\n"
    path.write_text(path.read_text().replace("models:\n", f"models:\n{models}"))
    assert [load_params(path).models[name].layers for name in "abc"] == ["8C3-16", "4C3-16", "2C3-16"]


def test_the_paper_profile_is_the_published_protocol() -> None:
    params = load_params(ROOT / "params.yaml")
    assert (params.grid.model, params.grid.k) == (["cnn1", "cnn2"], [0, 1, 2])
    assert {name: model.layers for name, model in params.models.items()} == {
        "cnn1": "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024",
        "cnn2": "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512",
    }
    phases = [{"epochs": 100, "learning_rate": 1e-3}, {"epochs": 100, "learning_rate": 1e-4}]
    assert params.profiles["paper"].model_dump() == {
        "data": {"source": "cifar10", "crop": 24, "held_out": 0},
        "width": 1.0,
        "recipe": TRAINED_WITH | {"batch_size": 200, "arithmetic": "auto"},  # 50,000 images: 250 steps an epoch
        "baseline": phases,
        "train": phases[0] | {"start": "scratch", "activation_penalty": 0},
        "finetune": phases[1] | {"integer_aware": False},
        "convert": {"weight_bits": 12},
        "simulate": {
            "steps": 100,
            "settle_limit": 1000,
            "layer_delay": [0],
            "engine": "auto",
            "batch_size": 50,
            "log_batch": 50,
        },
    }


def test_energies_are_those_of_a_45_nanometre_process() -> None:
    # Horowitz, ISSCC 2014, in pJ: a floating point addition 0.9 and multiplication 3.7; on 8 bits 0.03 and 0.2.
    energies = {"fp32_mac": 0.9 + 3.7, "int8_mac": 0.03 + 0.2, "int32_add": 0.1, "on_chip": 5.0, "dram": 640.0}
    assert load_params(ROOT / "params.yaml").energy.model_dump() == pytest.approx(energies)


# Allowed values


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("launch", "torchrun --standalone --nproc-per-node 4"),
        ("launch", "srun python -m torch.distributed.run -n 2"),
        ("device", "cuda:12"),
        ("grid.k", [0, LARGEST_K]),
        ("grid.seed", [0, 2**32 - 1]),
        ("energy.dram", 0),
        ("profiles.tiny.simulate.settle_limit", 20),  # as long as the curves
        ("profiles.tiny.simulate.layer_delay", [0]),
        ("profiles.tiny.convert.weight_bits", 4),
        ("profiles.tiny.convert.weight_bits", 16),
        ("profiles.tiny.finetune.learning_rate", 1),
    ],
)
def test_values_at_the_limits_are_kept(place: str, value: Any, write_params: Edit) -> None:
    kept: Any = load_params(write_params({place: value})).model_dump()
    for part in place.split("."):
        kept = kept[part]
    assert kept == value


def test_one_process_on_any_device_is_the_default(write_params: Edit) -> None:
    params = load_params(write_params({"device": None}))
    assert (params.launch, params.device) == ("python", "auto")


def test_a_number_that_yaml_takes_for_text_is_the_number_that_was_meant(write_params: Edit) -> None:
    path = write_params()
    path.write_text(path.read_text().replace("0.003", "1e-3").replace("0.5", "5e-1"))
    profile = load_params(path).profiles["tiny"]
    assert (profile.train.learning_rate, profile.width) == (0.001, 0.5)


def test_params_cannot_be_changed_once_read(write_params: Edit) -> None:
    params = load_params(write_params())
    with pytest.raises(ValueError, match="frozen"):
        params.profiles["tiny"].train.epochs = 5  # type: ignore[misc]


# Mistakes


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("lunch", "grid, models, profiles, energy, launch, device"),
        ("grid.epochs", "profile, model, k, seed"),
        ("models.small.width", "layers"),
        ("profiles.tiny.trian", "data, width, recipe, baseline, train, finetune, convert, simulate"),
        ("profiles.tiny.data.size", "source, crop, held_out"),
        (
            "profiles.tiny.recipe.lr",
            "optimizer, batch_size, label_smoothing, shift, flip, brightness, contrast, clip, arithmetic",
        ),
        ("profiles.tiny.baseline.0.start", "epochs, learning_rate"),
        ("profiles.tiny.train.batch_size", "epochs, learning_rate, start, activation_penalty"),
        ("profiles.tiny.finetune.start", "epochs, learning_rate, integer_aware"),
        ("profiles.tiny.convert.bits", "weight_bits"),
        ("profiles.tiny.simulate.T", "steps, settle_limit, layer_delay, engine, batch_size, log_batch"),
        ("energy.fp16_mac", "fp32_mac, int8_mac, int32_add, on_chip, dram"),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_that_are_allowed(place: str, allowed: str, write_params: Edit) -> None:
    expected = f"holds a value that is not allowed:\n  {place}: this key is unknown; allowed are {allowed}"
    assert error_of(write_params({place: 1})).endswith(expected)


def test_a_profile_may_be_named_like_a_section(write_params: Edit, params_content: dict[str, Any]) -> None:
    profile = params_content["profiles"]["tiny"] | {"colour": "red"}
    assert "profiles.train.colour: this key is unknown; allowed are data," in error_of(
        write_params({"profiles.train": profile})
    )


@pytest.mark.parametrize(
    "place",
    [
        *("grid", "grid.k", "models", "models.small.layers", "profiles", "energy", "energy.dram"),
        *(f"profiles.tiny.{name}" for name in ("data", "data.crop", "width", "recipe", "recipe.flip", "baseline")),
        *("profiles.tiny.baseline.0.epochs", "profiles.tiny.train.start", "profiles.tiny.finetune.learning_rate"),
        *("profiles.tiny.convert.weight_bits", "profiles.tiny.simulate.engine"),
    ],
)
def test_a_missing_key_is_named(place: str, write_params: Edit) -> None:
    assert f"\n  {place}: this key is missing" in error_of(write_params({place: None}))


K = "k is a whole number from 0 to 24, found"
PLACES = "k counts binary places and lies between 0 and 24, found"
NAME = "a name is 1 to 64 letters, digits and underscores (a number in quotes), found"
ABOVE, AT_LEAST, AT_MOST = (
    f"Input should be {relation} " for relation in ("greater than", "greater than or equal to", "less than or equal to")
)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("grid.k", [0, -1], f"grid.k.1: {PLACES} -1"),
        ("grid.k", [25], f"grid.k.0: {PLACES} 25"),
        ("grid.k", [True], f"grid.k.0: {K} True"),
        ("grid.k", [1.0], f"grid.k.0: {K} 1.0"),
        ("grid.k", ["2"], f"grid.k.0: {K} '2'"),
        ("grid.k", ["fp32"], f"grid.k.0: {K} 'fp32'; the full-precision baseline is always there"),
        ("grid.k", [1, 0, 1], "grid: k holds a duplicate: [1, 0, 1]"),
        ("grid.k", [], "grid.k: List should have at least 1 item"),
        ("grid.k", 2, "grid.k: Input should be a valid list (found 2)"),
        ("grid.profile", ["papr"], "grid.profile names 'papr', but profiles defines only tiny"),
        ("grid.model", ["small", "cnn3"], "grid.model names 'cnn3', but models defines only small"),
        ("grid.model", ["../x"], f"grid.model.0: {NAME} '../x'"),
        ("grid.model", [1], f"grid.model.0: {NAME} 1"),
        ("grid.seed", [-1], f"grid.seed.0: {AT_LEAST}0 (found -1)"),
        ("grid.seed", [2**32], "grid.seed.0: Input should be less than 4294967296 (found 4294967296)"),
        ("grid.seed", [True], "grid.seed.0: Input should be a valid integer (found True)"),
        ("models.small.layers", 96, "models.small.layers: Input should be a valid string (found 96)"),
        ("profiles.tiny.width", 0, f"profiles.tiny.width: {ABOVE}0 (found 0)"),
        ("profiles.tiny.width", 9, f"profiles.tiny.width: {AT_MOST}8 (found 9)"),
        ("profiles.tiny.data.source", "", "profiles.tiny.data.source: String should have at least 1 character"),
        ("profiles.tiny.data.crop", 0, f"profiles.tiny.data.crop: {AT_LEAST}1 (found 0)"),
        ("profiles.tiny.recipe", [1], "profiles.tiny.recipe: Input should be a valid dictionary"),
        ("profiles.tiny.recipe.batch_size", 1, f"profiles.tiny.recipe.batch_size: {AT_LEAST}2 (found 1)"),
        ("profiles.tiny.recipe.batch_size", "50", "batch_size: Input should be a valid integer (found '50')"),
        ("profiles.tiny.recipe.optimizer", "sgd", "recipe.optimizer: Input should be 'adam' or 'muon' (found 'sgd')"),
        ("profiles.tiny.recipe.label_smoothing", 1, "label_smoothing: Input should be less than 1 (found 1)"),
        ("profiles.tiny.recipe.shift", -1, f"profiles.tiny.recipe.shift: {AT_LEAST}0 (found -1)"),
        ("profiles.tiny.data.held_out", -1, f"profiles.tiny.data.held_out: {AT_LEAST}0 (found -1)"),
        (
            "profiles.tiny.recipe.flip",
            "yes",
            "recipe.flip: Input should be 'none', 'random' or 'alternating' (found 'yes')",
        ),
        ("profiles.tiny.recipe.brightness", 256, f"profiles.tiny.recipe.brightness: {AT_MOST}255 (found 256)"),
        ("profiles.tiny.recipe.contrast", 1, "recipe.contrast: Input should be less than 1 (found 1)"),
        ("profiles.tiny.recipe.clip", 0, f"profiles.tiny.recipe.clip: {ABOVE}0 (found 0)"),
        ("profiles.tiny.finetune.integer_aware", 1, "integer_aware: Input should be a valid boolean (found 1)"),
        ("profiles.tiny.train.activation_penalty", -1, f"train.activation_penalty: {AT_LEAST}0 (found -1)"),
        ("profiles.tiny.recipe.arithmetic", "fp16", "arithmetic: Input should be 'auto', 'bf16' or 'fp32'"),
        ("profiles.tiny.baseline", [], "profiles.tiny.baseline: List should have at least 1 item"),
        ("profiles.tiny.baseline.0.epochs", 0, f"profiles.tiny.baseline.0.epochs: {AT_LEAST}1 (found 0)"),
        ("profiles.tiny.train.epochs", 2.5, "profiles.tiny.train.epochs: Input should be a valid integer (found 2.5)"),
        ("profiles.tiny.train.start", "fp32", "train.start: Input should be 'baseline' or 'scratch' (found 'fp32')"),
        ("profiles.tiny.train.learning_rate", 0, f"profiles.tiny.train.learning_rate: {ABOVE}0 (found 0)"),
        ("profiles.tiny.train.learning_rate", 11, f"profiles.tiny.train.learning_rate: {AT_MOST}10 (found 11)"),
        ("profiles.tiny.train.learning_rate", "nan", "learning_rate: Input should be a finite number (found nan)"),
        ("profiles.tiny.finetune.learning_rate", "fast", "Input should be a valid number (found 'fast')"),
        ("profiles.tiny.finetune.learning_rate", True, "Input should be a valid number (found True)"),
        ("profiles.tiny.convert.weight_bits", 3, f"profiles.tiny.convert.weight_bits: {AT_LEAST}4 (found 3)"),
        ("profiles.tiny.convert.weight_bits", 17, f"profiles.tiny.convert.weight_bits: {AT_MOST}16 (found 17)"),
        ("profiles.tiny.simulate.engine", "fast", "engine: Input should be 'auto', 'reference', 'dense' or 'events'"),
        ("profiles.tiny.simulate.steps", 0, f"profiles.tiny.simulate.steps: {AT_LEAST}1 (found 0)"),
        (
            "profiles.tiny.simulate.settle_limit",
            19,
            "profiles.tiny.simulate: settle_limit is 19, but every image runs for 20 steps: set it to simulate.steps",
        ),
        ("profiles.tiny.simulate.layer_delay", 4, "simulate.layer_delay: Input should be a valid list (found 4)"),
        ("profiles.tiny.simulate.layer_delay", [], "simulate.layer_delay: List should have at least 1 item"),
        (
            "profiles.tiny.simulate.layer_delay",
            [0, -1],
            f"simulate.layer_delay.1: {AT_LEAST}0 (found -1)",
        ),
        ("profiles.tiny.simulate.layer_delay", [1.5], "layer_delay.0: Input should be a valid integer (found 1.5)"),
        (
            "profiles.tiny.simulate.layer_delay",
            [0, 4, 0],
            "profiles.tiny.simulate: layer_delay holds a duplicate: [0, 4, 0]",
        ),
        ("energy.dram", -1, f"energy.dram: {AT_LEAST}0 (found -1)"),
        ("energy.on_chip", float("nan"), "energy.on_chip: Input should be a finite number (found nan)"),
        ("energy.int32_add", True, "energy.int32_add: Input should be a valid number (found True)"),
        ("launch", "  ", "launch: expected python, or torchrun with its options, found '  '"),
        ("launch", "torchrun 'x", 'launch: a command was expected, found "torchrun \'x" (No closing quotation)'),
        ("launch", "echo", "launch: expected python, or torchrun with its options, found 'echo'"),
        ("launch", ["torchrun"], "launch: Input should be a valid string (found ['torchrun'])"),
        ("device", "gpu", "device: String should match pattern"),
        ("device", "cuda:", "(found 'cuda:')"),
        ("device", "cuda:100", "(found 'cuda:100')"),  # torch numbers GPUs in 8 bits
        ("device", "cuda:\u0663", "device: String should match pattern"),  # a digit, but not for torch
        ("grid.model", ["m" * 65], f"grid.model.0: {NAME} 'mmm"),
        (
            "profiles.tiny.simulate.steps",
            10**400,
            "steps: Input should be less than or equal to 1000000000 (found 1000",
        ),
        (
            "profiles.tiny.data.source",
            "x\ud800",
            "data.source: Input should be a valid string, unable to parse raw data",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_place(
    place: str, value: Any, message: str, write_params: Edit
) -> None:
    error = error_of(write_params({place: value}))
    assert "params.yaml holds a value that is not allowed:\n  " in error
    assert message in error
    assert place.split(".")[-1] in error


@pytest.mark.parametrize("name", ["resume", "Downloads", "TINY"])
def test_no_profile_shares_its_folder(name: str, write_params: Edit, params_content: dict[str, Any]) -> None:
    error = error_of(write_params({f"profiles.{name}": params_content["profiles"]["tiny"]}))
    shares = (
        "would share its folder: names must differ by more than capital letters, and no profile can be named resume"
    )
    assert re.search(f"profiles.({name}|tiny) {shares} or downloads", error)


def test_no_model_shares_its_folder(write_params: Edit) -> None:
    layers = {"layers": "8C3-16"}
    assert len(load_params(write_params({"models.resume": layers})).models) == 2
    assert "models.Small would share its folder: " in error_of(write_params({"models.Small": layers}))


def test_of_many_mistakes_the_first_are_named(write_params: Edit) -> None:
    lines = error_of(write_params({"grid.seed": [-1] * 1000})).splitlines()
    assert lines[0].endswith("holds 1000 values that are not allowed:")
    assert (lines[20].split(":")[0], lines[21:]) == ("  grid.seed.19", ["  ..."])


def test_a_long_value_is_shown_in_part(write_params: Edit) -> None:
    line = error_of(write_params({"profiles.tiny.recipe.flip": "x" * 2000})).splitlines()[1]
    assert line.endswith("xxx ...")
    assert len(line) < 600


def test_all_mistakes_are_named_at_once(write_params: Edit) -> None:
    error = error_of(write_params({"grid.k": [-1, 99], "profiles.tiny.train.epochs": 0, "colour": "red"}))
    assert "holds 4 values that are not allowed:" in error
    for place in ("grid.k.0: ", "grid.k.1: ", "profiles.tiny.train.epochs: ", "colour: "):
        assert f"\n  {place}" in error


# Files that cannot be read

# Each line stands for ten times as many values as the one before.
EXPLODING = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "params.yaml does not exist: run in the project's folder, or use --params"),
        (b"grid: [1", "is not valid YAML: while parsing"),
        (b"grid:\n\t- a", "is not valid YAML"),
        (b"{[a]: b}", "is not valid YAML"),
        (b"grid: !!python/object:os.system x", "is not valid YAML: could not determine a constructor"),
        (b"grid: 2026-13-45", "is not valid YAML: month must be in"),
        (b"grid: !!int many", "is not valid YAML: 'many': write a number in decimal digits, or text in quotes\n"),
        (b"a: 1\ngrid: !!int ''", "is not valid YAML: '': write a number in decimal digits, or text in quotes\n"),
        (b"a: 010", "is not valid YAML: '010': write a number in decimal digits, or text in quotes\n"),
        (b"a: 0x10", "is not valid YAML: '0x10': write a number in decimal digits, or text in quotes\n"),
        (b"a: [1:30]", "is not valid YAML: '1:30': write a number in decimal digits, or text in quotes\n"),
        (b"a: 1_0.5", "is not valid YAML: '1_0.5': write a number in decimal digits, or text in quotes\n"),
        (b"a: 1:30.5", "is not valid YAML: '1:30.5': write a number in decimal digits, or text in quotes\n"),
        (b"grid: !!bool x", "is not valid YAML: KeyError: 'x'\n"),
        (b"grid: !!timestamp x", "is not valid YAML: AttributeError: "),
        (b"grid: !!set [a]", "is not valid YAML: expected a mapping node, but found sequence\n"),
        (b"grid: !!map x", "is not valid YAML: expected a mapping node, but found scalar\n"),
        (b"[" * 1000, "is not valid YAML: RecursionError: "),
        (b"a: &a [*a]", "is not valid YAML: an alias stands within the section that it names\n"),
        (b"a: " + b"x" * 2001, "is not valid YAML: a value has more than 2,000 characters\n"),
        (b"#" * 2**20 + b"#", "is not valid YAML: it has more than 1,048,576 characters"),
        (EXPLODING, "is not valid YAML: it stands for more than 20,000 values\n"),
        (EXPLODING.replace(b"[", b"{<<: [").replace(b"]", b"]}"), "it stands for more than 20,000 values\n"),
        (b"a: 1\n---\nb: 2", "is not valid YAML: expected a single document"),
        (b"a: 1\nb: {c: 1,\n  d: 2, c: 3}", "is not valid YAML: duplicate key 'c' in line 3"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"[1, 2]", "must hold sections such as grid and profiles, found list"),
        (b"", "must hold sections such as grid and profiles, found NoneType"),
    ],
)
def test_a_file_without_sections_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    assert message in error_of(path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in error_of(tmp_path)


# What a network depends on


def test_the_settings_of_a_network_are_those_of_its_stages(write_params: Edit) -> None:
    profile = load_params(write_params()).profiles["tiny"]
    finetune = {"finetune.epochs": 1, "finetune.learning_rate": 0.0003, "finetune.integer_aware": False}
    train = {"train.epochs": 1, "train.learning_rate": 0.003, "train.start": "scratch", "train.activation_penalty": 0}
    baseline = {"baseline.0.epochs": 1, "baseline.0.learning_rate": 0.003}
    shared = {"width": 0.5, "data.crop": 8}
    shared |= {f"recipe.{name}": value for name, value in profile.recipe}
    assert profile.training_settings("baseline") == shared | baseline
    assert profile.training_settings("train") == shared | train
    assert profile.training_settings("finetune") == shared | train | finetune
    # A network that is trained as integers depends on the width of their weights.
    aware = load_params(write_params({"profiles.tiny.finetune.integer_aware": True})).profiles["tiny"]
    integers = {"finetune.integer_aware": True, "convert.weight_bits": 12}
    assert aware.training_settings("finetune") == shared | train | finetune | integers
    assert aware.training_settings("train") == shared | train

    profile = load_params(write_params({"profiles.tiny.train.start": "baseline"})).profiles["tiny"]
    assert profile.training_settings("train") == shared | baseline | train | {"train.start": "baseline"}


# Hostile files


def check_read(path: Path) -> None:
    """Check that a file is read, or refused with its name."""
    try:
        load_checked_params(path)
    except QuantspikeError as error:
        assert str(path) in str(error)  # noqa: PT017 (it may also be read)


@fuzz(content=mutations((ROOT / "params.yaml").read_bytes()))
def test_whatever_happens_to_its_bytes_a_file_is_read_or_named(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(content)
    check_read(path)


@fuzz(content=JSON, data=st.data())
def test_whatever_value_stands_in_a_place_a_file_is_read_or_named(
    content: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    params = copy.deepcopy(PARAMS)
    section: Any = params
    while True:
        key = data.draw(st.sampled_from(list(section) if isinstance(section, dict) else list(range(len(section)))))
        if not isinstance(section[key], dict | list) or data.draw(st.booleans()):
            break
        section = section[key]
    section[key] = content
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(json.dumps(params))  # which YAML reads, too
    check_read(path)
