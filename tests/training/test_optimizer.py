"""Adam: the published formula, and moments that belong to the weights they are given to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network
from quantspike.training.optimizer import adam_tensors, make_adam, restore_adam

ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=2, classes=3)

Adam = torch.optim.Optimizer


def network(seed: int = 0) -> QuantizedCNN:
    return new_network(ARCHITECTURE, 1, seed)


def set_gradients(network: QuantizedCNN, random: torch.Generator) -> None:
    """Make up gradients in the layout that the backward pass gives them: that of the weights."""
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=random)
        parameter.grad = torch.empty_like(parameter.detach()).copy_(gradient)


def steps(network: QuantizedCNN, adam: Adam, n: int, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(n):
        set_gradients(network, random)
        adam.step()


def stepped(n: int) -> tuple[QuantizedCNN, Adam]:
    """Return a network and its Adam after n steps."""
    trained = network()
    adam = make_adam(trained)
    steps(trained, adam, n)
    return trained, adam


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def test_adam_moves_weights_by_the_published_formula() -> None:
    trained = network().double()
    adam = make_adam(trained)
    adam.param_groups[0]["lr"] = 0.02
    expected = {name: value.detach().clone() for name, value in trained.named_parameters()}
    means, squares = ({name: torch.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    random = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        set_gradients(trained, random)
        for name, parameter in trained.named_parameters():
            assert parameter.grad is not None
            means[name] = 0.9 * means[name] + 0.1 * parameter.grad
            squares[name] = 0.999 * squares[name] + 0.001 * parameter.grad**2
            root = (squares[name] / (1 - 0.999**step)).sqrt()
            expected[name] -= 0.02 * (means[name] / (1 - 0.9**step)) / (root + 1e-8)
        adam.step()
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-12)


def test_before_the_first_step_there_are_no_moments() -> None:
    assert adam_tensors(network(), make_adam(network())) == {}


def test_moments_are_named_by_their_parameters() -> None:
    tensors = adam_tensors(*stepped(3))
    names = [name for name, _ in network().named_parameters()]
    moments = {f"adam.{moment}.{name}" for name in names for moment in ("exp_avg", "exp_avg_sq")}
    assert set(tensors) == moments | {"adam.step"}
    assert tensors["adam.step"].tolist() == [3]
    assert tensors["adam.exp_avg.classifier.weight"].shape == (3, 5)


@pytest.mark.parametrize("contiguous", [True, False])
def test_adam_resumes_from_its_moments_to_the_last_bit(contiguous: bool) -> None:
    # A file keeps no layout: what comes out of it is contiguous, while the weights are in channels-last order.
    whole, adam = stepped(3)
    weights, moments = cloned(whole.state_dict()), cloned(adam_tensors(whole, adam))
    steps(whole, adam, 4, seed=1)

    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    if contiguous:
        moments = {name: value.contiguous() for name, value in moments.items()}
    again = make_adam(resumed)
    restore_adam(resumed, again, moments)
    steps(resumed, again, 4, seed=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in adam_tensors(whole, adam).items():
        assert torch.equal(adam_tensors(resumed, again)[name], value), name


def test_restored_moments_have_the_memory_layout_of_their_weights() -> None:
    # Fused Adam walks weights and moments in their order in memory, whatever their strides say.
    moments = {name: value.contiguous() for name, value in adam_tensors(*stepped(1)).items()}
    resumed = network()
    adam = make_adam(resumed)
    restore_adam(resumed, adam, moments)
    weight = resumed.blocks[2].convolution.weight
    assert weight.stride() != moments["adam.exp_avg.blocks.2.convolution.weight"].stride()
    for parameter in resumed.parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert adam.state[parameter][moment].stride() == parameter.stride()


def test_restoring_copies_the_moments() -> None:
    trained, adam = stepped(2)
    moments = cloned(adam_tensors(trained, adam))
    kept = cloned(moments)
    restore_adam(trained, adam, moments)
    steps(trained, adam, 2)
    assert all(torch.equal(value, kept[name]) for name, value in moments.items())
    counters = [adam.state[parameter]["step"] for parameter in trained.parameters()]
    assert len({counter.data_ptr() for counter in counters}) == len(counters)  # each parameter counts for itself


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("adam.exp_avg.blocks.1.normalization.bias", None, "the Adam moments '{}' are missing"),
        ("adam.step", None, "the Adam moments '{}' are missing"),
        ("adam.exp_avg.classifier.weight", torch.zeros(2), "{} does not fit its weights or is not finite"),
        ("adam.exp_avg_sq.classifier.weight", torch.full((3, 5), torch.nan), "{} does not fit"),
        ("adam.step", torch.tensor([torch.inf]), "{} does not fit"),
    ],
)
def test_moments_that_are_missing_or_do_not_fit_are_named(name: str, wrong: Tensor | None, message: str) -> None:
    trained, adam = stepped(1)
    tensors = {key: value for key, value in adam_tensors(trained, adam).items() if key != name}
    if wrong is not None:
        tensors[name] = wrong
    with pytest.raises(QuantspikeError, match=message.format(name)):
        restore_adam(trained, adam, tensors)
