"""Optimizers: the published formulas, and moments that belong to the weights they are given to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.params import OptimizerName
from quantspike.training.optimizer import Muon, Optimizer

ARCHITECTURE = Architecture.parse("24C3-P2-6C3-5", image_size=4, image_channels=2, classes=3)  # 24 x 18 is tall
BOTH: list[OptimizerName] = ["adam", "muon"]


def network(seed: int = 0) -> QuantizedCNN:
    return new_network(ARCHITECTURE, 1, seed)


def set_gradients(network: QuantizedCNN, random: torch.Generator) -> None:
    """Make up gradients in the layout that the backward pass gives them: that of the weights."""
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=random)
        parameter.grad = torch.empty_like(parameter.detach()).copy_(gradient)


def steps(network: QuantizedCNN, optimizer: Optimizer, n: int, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(n):
        set_gradients(network, random)
        optimizer.step(0.02)


def stepped(n: int, kind: OptimizerName) -> tuple[QuantizedCNN, Optimizer]:
    """Return a network and its optimizer after n steps."""
    trained = network()
    optimizer = Optimizer(trained, kind)
    steps(trained, optimizer, n)
    return trained, optimizer


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


# Formulas


def adam_by_hand(
    value: Tensor, gradients: list[Tensor], rate: float, betas: tuple[float, float], eps: float = 1e-8
) -> Tensor:
    mean, square = torch.zeros_like(value), torch.zeros_like(value)
    for step, gradient in enumerate(gradients, start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        root = (square / (1 - betas[1] ** step)).sqrt()
        value = value - rate * (mean / (1 - betas[0] ** step)) / (root + eps)
    return value


def five_steps(trained: QuantizedCNN, kind: OptimizerName, bf16: bool = False) -> dict[str, list[Tensor]]:
    """Take five steps at a learning rate of 0.02; return the gradients of each parameter."""
    optimizer, random = Optimizer(trained, kind), torch.Generator().manual_seed(0)
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in trained.named_parameters()}
    for _ in range(5):
        set_gradients(trained, random)
        for name, parameter in trained.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.clone())
        optimizer.step(0.02, bf16=bf16)
    return gradients


def test_adam_moves_weights_by_the_published_formula() -> None:
    trained = network().double()
    before = cloned(dict(trained.named_parameters()))
    gradients = five_steps(trained, "adam")
    for name, parameter in trained.named_parameters():
        expected = adam_by_hand(before[name], gradients[name], 0.02, (0.9, 0.999))
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-12)


def muon_by_hand(weight: Tensor, gradients: list[Tensor], rate: float, scaled: bool = True) -> Tensor:
    """Return a weight [out, in, height, width] after steps of Muon, from the singular values of each matrix."""
    matrix, momentum = weight.flatten(1).double(), torch.zeros(1)
    rows, columns = matrix.shape
    for gradient in gradients:
        matrix = matrix * rows**0.5 / matrix.norm() if scaled else matrix
        momentum = 0.6 * momentum + gradient.flatten(1).double()
        left, values, right = torch.linalg.svd(gradient.flatten(1).double() + 0.6 * momentum, full_matrices=False)
        values = values / values.square().sum().sqrt()
        for _ in range(3):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        matrix = matrix - rate * max(1, rows / columns) ** 0.5 * (left * values) @ right
    return matrix.reshape(weight.shape)


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_moves_convolutions_by_their_gradients_orthogonalized_and_everything_else_as_adam(bf16: bool) -> None:
    trained = network()
    before = cloned(dict(trained.named_parameters()))
    gradients = five_steps(trained, "muon", bf16)
    for name, parameter in trained.named_parameters():
        if "convolution" in name:
            expected = muon_by_hand(before[name], gradients[name], 0.02)
            # Five steps of at most 0.02 in every direction.
            error = float((parameter.double() - expected).detach().abs().max())
            assert 1e-5 < error < 2e-3 if bf16 else error < 1e-6, name
            assert not torch.allclose(parameter.double(), before[name].double(), rtol=0, atol=2e-2)
        else:
            expected = adam_by_hand(before[name], gradients[name], 0.02 / 20, (0.9, 0.99))
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_muon_keeps_the_norm_where_no_batch_normalization_takes_it_out() -> None:
    trained = with_precision(network(), 1, weight_bits=8)
    before = cloned(dict(trained.named_parameters()))
    for name, gradients in five_steps(trained, "muon").items():
        if "convolution" in name:
            expected = muon_by_hand(before[name], gradients, 0.02, scaled=False)
            torch.testing.assert_close(trained.get_parameter(name).double(), expected, rtol=0, atol=1e-6)


def test_a_step_of_muon_does_not_depend_on_the_norm_of_the_weight() -> None:
    # Batch normalization takes the norm out of a network, so it is free.
    ends = []
    for factor in (1.0, 50.0):
        trained = network()
        weights = [block.convolution.weight for block in trained.blocks]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(factor)
        muon, random = Muon(weights), torch.Generator().manual_seed(0)
        set_gradients(trained, random)
        muon.param_groups[0]["lr"] = 0.02
        muon.step()
        ends.append(weights)
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second)


# Moments


@pytest.mark.parametrize("kind", BOTH)
def test_before_the_first_step_there_are_no_moments(kind: OptimizerName) -> None:
    assert Optimizer(network(), kind).tensors() == {}


@pytest.mark.parametrize("kind", BOTH)
def test_moments_are_named_by_their_parameters(kind: OptimizerName) -> None:
    tensors = stepped(3, kind)[1].tensors()
    by_muon = {name for name, value in network().named_parameters() if kind == "muon" and value.ndim == 4}
    by_adam = {name for name, _ in network().named_parameters()} - by_muon
    moments = {f"optimizer.{moment}.{name}" for name in by_adam for moment in ("exp_avg", "exp_avg_sq", "step")}
    assert set(tensors) == moments | {f"optimizer.momentum_buffer.{name}" for name in by_muon}
    assert tensors["optimizer.step.classifier.weight"] == 3
    assert tensors["optimizer.exp_avg.classifier.weight"].shape == (3, 5)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_an_optimizer_resumes_from_its_moments_to_the_last_bit(kind: OptimizerName, contiguous: bool) -> None:
    # A file keeps no layout: what comes out of it is contiguous, while the weights are in channels-last order.
    whole, optimizer = stepped(3, kind)
    weights, moments = cloned(whole.state_dict()), cloned(optimizer.tensors())
    steps(whole, optimizer, 4, seed=1)

    resumed = network(seed=1)
    again = Optimizer(resumed, kind)
    resumed.load_state_dict(weights)
    if contiguous:
        moments = {name: value.contiguous() for name, value in moments.items()}
    again.restore(moments)
    steps(resumed, again, 4, seed=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in optimizer.tensors().items():
        assert torch.equal(again.tensors()[name], value), name


def test_restored_moments_have_the_memory_layout_of_their_weights() -> None:
    # Fused Adam walks weights and moments in their order in memory, whatever their strides say.
    moments = {name: value.contiguous() for name, value in stepped(1, "adam")[1].tensors().items()}
    resumed = network()
    optimizer = Optimizer(resumed, "adam")
    optimizer.restore(moments)
    name = "blocks.2.convolution.weight"
    assert resumed.get_parameter(name).stride() != moments[f"optimizer.exp_avg.{name}"].stride()
    for name, parameter in resumed.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert optimizer.tensors()[f"optimizer.{moment}.{name}"].stride() == parameter.stride()


@pytest.mark.parametrize("kind", BOTH)
def test_restoring_copies_the_moments(kind: OptimizerName) -> None:
    trained, optimizer = stepped(2, kind)
    moments = cloned(optimizer.tensors())
    kept = cloned(moments)
    optimizer.restore(moments)
    steps(trained, optimizer, 2)
    assert all(torch.equal(value, kept[name]) for name, value in moments.items())


@pytest.mark.parametrize(
    ("kind", "name", "wrong", "message"),
    [
        ("adam", "exp_avg.blocks.1.normalization.bias", None, "the moment '{}' is missing"),
        ("adam", "step.classifier.weight", None, "the moment '{}' is missing"),
        ("adam", "exp_avg.classifier.weight", torch.zeros(2), "{} does not fit its weights or is not finite"),
        ("adam", "exp_avg_sq.classifier.weight", torch.full((3, 5), torch.nan), "{} does not fit"),
        ("adam", "step.classifier.weight", torch.tensor(torch.inf), "{} does not fit"),
        ("muon", "momentum_buffer.blocks.0.convolution.weight", None, "the moment '{}' is missing"),
        ("muon", "momentum_buffer.blocks.0.convolution.weight", torch.zeros(24, 2, 9), "{} does not fit"),
        ("muon", "exp_avg.classifier.weight", None, "the moment '{}' is missing"),
    ],
)
def test_moments_that_are_missing_or_do_not_fit_are_named(
    kind: OptimizerName, name: str, wrong: Tensor | None, message: str
) -> None:
    _, optimizer = stepped(1, kind)
    tensors = {key: value for key, value in optimizer.tensors().items() if key != f"optimizer.{name}"}
    if wrong is not None:
        tensors[f"optimizer.{name}"] = wrong
    with pytest.raises(QuantspikeError, match=message.format(f"optimizer.{name}")):
        optimizer.restore(tensors)
