"""Adam: the published formula, decay of weights alone, and moments that belong to the weights they are given to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quantspike.adam import adam_tensors, make_adam, restore_adam
from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN, new_network

ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=2, classes=3)


def network(seed: int = 0) -> QuantizedCNN:
    return new_network(ARCHITECTURE, 1, seed)


def set_gradients(network: QuantizedCNN, random: torch.Generator) -> None:
    """Made-up gradients in the layout that the backward pass gives them: that of the weights."""
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=random)
        parameter.grad = torch.empty_like(parameter.detach()).copy_(gradient)


def steps(network: QuantizedCNN, adam: torch.optim.Optimizer, n: int, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(n):
        set_gradients(network, random)
        adam.step()


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


# The formula


def test_adam_moves_weights_by_the_published_formula() -> None:
    trained = network()
    adam = make_adam(trained, 1e-3)
    weight = trained.classifier.weight
    expected = weight.detach().double().clone()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    random = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        set_gradients(trained, random)
        assert weight.grad is not None
        gradient = weight.grad.double()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        expected -= 1e-3 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        adam.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-7)


def test_without_decay_it_is_plain_adam_to_the_last_bit() -> None:
    ours, plain = network(), network()
    steps(ours, make_adam(ours, 0.01, weight_decay=0.0), 7)
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "fused": True}
    steps(plain, torch.optim.Adam(plain.parameters(), **settings), 7)
    for name, parameter in plain.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter), name
        assert not torch.equal(parameter, network().get_parameter(name)), name


def test_every_parameter_is_in_one_group_with_the_published_settings() -> None:
    trained = network()
    groups = make_adam(trained, 0.01, weight_decay=0.05).param_groups
    for group in groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.9, 0.999), 1e-8)
        assert not group["amsgrad"]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in trained.parameters())


# Decay


def test_decay_takes_its_share_times_the_rate_off_the_weights_alone() -> None:
    trained = network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(2.0)
            parameter.grad = torch.zeros_like(parameter)
    make_adam(trained, 0.1, weight_decay=0.5).step()
    for name, parameter in trained.named_parameters():
        # 2 x (1 - 0.1 x 0.5) = 1.9 for convolutions and classifier, 2 for scales and shifts.
        expected = 2.0 if "normalization" in name else 1.9
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected), rtol=0, atol=1e-6)


def test_decay_does_not_pass_through_the_moments() -> None:
    trained = network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(2.0)
            parameter.grad = torch.full_like(parameter, 3.0)
    adam = make_adam(trained, 0.1, weight_decay=0.5)
    adam.step()
    # The first step of Adam is the rate itself, whatever the gradient: 1.9 - 0.1 = 1.8.
    weight = trained.classifier.weight
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 1.8), rtol=0, atol=1e-6)
    # 0.1 x 3 and 0.001 x 9: of the gradient and nothing else.
    tensors = adam_tensors(trained, adam)
    for name, value in (("exp_avg", 0.3), ("exp_avg_sq", 0.009)):
        moment = tensors[f"adam.{name}.classifier.weight"]
        torch.testing.assert_close(moment, torch.full_like(moment, value))


# Moments as tensors


def test_before_the_first_step_there_are_no_moments() -> None:
    assert adam_tensors(network(), make_adam(network(), 0.01)) == {}


def test_moments_are_named_by_their_parameters() -> None:
    trained = network()
    adam = make_adam(trained, 0.01)
    steps(trained, adam, 3)
    tensors = adam_tensors(trained, adam)
    names = [name for name, _ in trained.named_parameters()]
    moments = {f"adam.{moment}.{name}" for name in names for moment in ("exp_avg", "exp_avg_sq")}
    assert set(tensors) == moments | {"adam.step"}
    assert tensors["adam.step"].tolist() == [3]
    assert tensors["adam.exp_avg.classifier.weight"].shape == (3, 5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("contiguous", [True, False])
def test_adam_goes_on_from_its_moments_as_if_it_had_never_stopped(contiguous: bool, decay: float) -> None:
    # A file keeps no layout: what comes out of it is contiguous, while the weights are in channels-last order.
    whole = network()
    adam = make_adam(whole, 0.01, decay)
    steps(whole, adam, 3)
    weights, moments = cloned(whole.state_dict()), cloned(adam_tensors(whole, adam))
    steps(whole, adam, 4, seed=1)

    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    if contiguous:
        moments = {name: value.contiguous() for name, value in moments.items()}
    again = make_adam(resumed, 0.01, decay)
    restore_adam(resumed, again, moments)
    steps(resumed, again, 4, seed=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in adam_tensors(whole, adam).items():
        assert torch.equal(adam_tensors(resumed, again)[name], value), name


def test_restored_moments_lie_in_memory_as_their_weights_do() -> None:
    # Fused Adam walks through a weight and its moments in the order they lie in memory, whatever their strides say.
    trained = network()
    adam = make_adam(trained, 0.01)
    steps(trained, adam, 1)
    moments = {name: value.contiguous() for name, value in adam_tensors(trained, adam).items()}
    resumed = network()
    again = make_adam(resumed, 0.01)
    restore_adam(resumed, again, moments)
    weight = resumed.blocks[2].convolution.weight
    assert weight.stride() != moments["adam.exp_avg.blocks.2.convolution.weight"].stride()
    for parameter in resumed.parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert again.state[parameter][moment].stride() == parameter.stride()


def test_restoring_copies_the_moments() -> None:
    trained = network()
    adam = make_adam(trained, 0.01)
    steps(trained, adam, 2)
    moments = cloned(adam_tensors(trained, adam))
    kept = cloned(moments)
    restore_adam(trained, adam, moments)
    steps(trained, adam, 2)
    assert all(torch.equal(value, kept[name]) for name, value in moments.items())
    assert len({adam.state[parameter]["step"].data_ptr() for parameter in trained.parameters()}) == len(
        list(trained.parameters())
    )


def test_moments_that_are_lacking_are_named() -> None:
    with pytest.raises(QuantspikeError, match=r"the Adam moments 'adam\.exp_avg\.blocks\.0\.\S+' are lacking"):
        restore_adam(network(), make_adam(network(), 0.01), {})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("adam.exp_avg.classifier.weight", torch.zeros(2)),
        ("adam.exp_avg_sq.classifier.weight", torch.full((3, 5), torch.nan)),
        ("adam.step", torch.tensor([torch.inf])),
    ],
)
def test_moments_that_do_not_fit_are_named(name: str, wrong: Tensor) -> None:
    trained = network()
    adam = make_adam(trained, 0.01)
    steps(trained, adam, 1)
    tensors = adam_tensors(trained, adam) | {name: wrong}
    with pytest.raises(QuantspikeError, match=f"{name} does not fit its weights or is not finite"):
        restore_adam(trained, adam, tensors)
