"""The same trained network by the published rule and by ours, image by image.

    python benchmarks/published_rule.py --profile short --k 1 --images 200 --json published_rule.json

The rule that Zou et al. (2023) published with their code, written down anew here in float64: a neuron adds the
convolution of the raw weights to its membrane M, which a second one, Q, follows from the bound B on in steps of D.

    d = max(M, B) - Q       +1 if d > D;  -1 if d < -1e-5;  0 otherwise       Q <- Q + s D
    D = r / g               B = (1/2 - 2^k b) r / g + 2^k m - r / g

with scale g, shift b and mean m of the batch normalization, and r the root of its variance plus epsilon. It differs
from ours in three ways: the weights are those of the float network, not integers; a tie stays below (> in place of
>=); and what was fired too much by less than the tolerance is not taken back. It has no meaning where g < 0: such
channels are turned round (weights, mean and g change their sign), which leaves the network the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantspike.architecture import Layer
from quantspike.augmentation import central_images
from quantspike.conversion import convert
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.integer import IntegerNetwork
from quantspike.measuring import channels_last
from quantspike.networks import Block, QuantizedCNN
from quantspike.operations import fan_outs
from quantspike.params import Simulate
from quantspike.simulation import simulate
from quantspike.simulation.measures import check_proved
from trained_networks import WEIGHT_BITS, add_chain_arguments, integer_precision, load_chain, share, some_test_images
from training import machine

TOLERANCE = 1e-5
AT_ONCE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_chain_arguments(parser, images=200)
    parser.add_argument(
        "--k", type=integer_precision, default=1, help="precision of the activations (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=100, help="time steps (default: %(default)s)")
    options = parser.parse_args()
    try:
        network, dataset = load_chain(options, options.k)
        result = compare(network, *some_test_images(dataset, options.images), options.steps)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(result))
    if options.json:
        write_json(options.json, result)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a simulation of N images came to after T steps.

    Attributes:
        predictions: int64 [N].
        positive: positive spikes of each image, int64 [N].
        negative: likewise.
        synops: synaptic operations, likewise.
        last_spike: last step in which a neuron of the image fired, int64 [N].
        differing: neurons whose net count is not that of the quantized network in float64, int64 [N].
    """

    predictions: Tensor
    positive: Tensor
    negative: Tensor
    synops: Tensor
    last_spike: Tensor
    differing: Tensor


class PublishedNetwork:
    """A trained network with the published neurons.

    Raises:
        QuantspikeError: a batch normalization scales a channel by 0, which leaves the rule without a step.
    """

    def __init__(self, network: QuantizedCNN) -> None:
        self._architecture, self._k = network.architecture, int(network.k)
        self._classifier = network.classifier.weight.detach().double()
        for index, block in enumerate(network.blocks, start=1):
            if bool((still := block.normalization.weight == 0).any()):
                raise QuantspikeError(f"layer {index}, channel {int(still.int().argmax())}: its scale is 0")
        self._layers = list(map(self._layer, network.blocks, network.architecture.layers))
        self._fan_outs = [torch.from_numpy(reached) for reached in fan_outs(network.architecture)]
        self.turned_channels = sum(turned for *_, turned in self._layers)

    def _layer(self, block: Block, shape: Layer) -> tuple[Layer, Tensor, Tensor, Tensor, int]:
        """Weights [out, in, kernel, kernel], steps D and bounds B [out, 1, 1], and how many channels were turned."""
        norm = block.normalization
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale, shift, mean = norm.weight.detach().double(), norm.bias.detach().double(), norm.running_mean.double()
        weight, root = block.convolution.weight.detach().double(), (norm.running_var.double() + norm.eps).sqrt()
        sign = torch.where(scale < 0, -1.0, 1.0).double()
        weight, mean, scale = weight * sign[:, None, None, None], mean * sign, scale.abs()
        step = root / scale
        bound = (0.5 - 2.0**self._k * shift) * step + 2.0**self._k * mean - step
        return shape, weight, step[:, None, None], bound[:, None, None], int((sign < 0).sum())

    def counts(self, images: Tensor) -> list[Tensor]:
        """Net counts that the layers ought to come to: those of the quantized network in float64 [N, C, H, W].

        Args:
            images: standardized, float64.
        """
        values, counts = images * 2.0**self._k, []
        for shape, weight, step, bound, _ in self._layers:
            drive = functional.conv2d(values, weight, stride=shape.stride, padding=shape.padding)
            # drive = B + D stands for one half.
            counts.append(((drive - bound) / step - 0.5).round_().clamp_(min=0))
            values = counts[-1]
        return counts

    def run(self, images: Tensor, steps: int) -> Outcome:
        """Simulates standardized images, float64 [N, C, H, W]."""
        parts = [self._run(part, steps) for part in images.split(AT_ONCE)]
        return Outcome(*(torch.cat([getattr(part, name) for part in parts]) for name in Outcome.__annotations__))

    def _run(self, images: Tensor, steps: int) -> Outcome:
        n = len(images)
        positive, negative, synops, last_spike = torch.zeros(4, n, dtype=torch.int64)
        expected = self.counts(images)
        totals = [torch.zeros_like(count) for count in expected]
        membranes = [torch.zeros_like(count) for count in expected]
        followers = [
            bound + torch.zeros_like(total) for (*_, bound, _), total in zip(self._layers, totals, strict=True)
        ]
        # An image in which nothing fires has no input any more, and never fires again.
        active, spikes = torch.arange(n), images * 2.0**self._k
        for time in range(1, steps + 1):
            fired = torch.zeros(len(active), dtype=torch.int64)
            for index, (shape, weight, step, bound, _) in enumerate(self._layers):
                if index > 0 or time == 1:
                    drive = functional.conv2d(spikes, weight, stride=shape.stride, padding=shape.padding)
                    membranes[index][active] += drive
                excess = torch.maximum(membranes[index][active], bound) - followers[index][active]
                up, down = excess > step, excess < -TOLERANCE
                spikes = up.double() - down.double()
                followers[index][active] += step * spikes
                totals[index][active] += spikes
                positive[active] += up.sum(dim=(1, 2, 3))
                negative[active] += down.sum(dim=(1, 2, 3))
                synops[active] += ((up | down) * self._fan_outs[index]).sum(dim=(1, 2, 3))
                fired += (up | down).sum(dim=(1, 2, 3))
            last_spike[active[fired > 0]] = time
            active = active[fired > 0]
            if len(active) == 0:
                break
        scores = totals[-1].flatten(1) @ self._classifier.T
        return Outcome(scores.argmax(1), positive, negative, synops, last_spike, differing(totals, expected))


def run_ours(network: IntegerNetwork, images: Tensor, quantized: PublishedNetwork, steps: int) -> Outcome:
    """Simulates images, uint8 [N, C, H, W], by our rule.

    Raises:
        QuantspikeError: an image did not come to rest, or not to the counts of the integer network.
    """
    settings = Simulate(steps=steps, settle_limit=1000, engine="auto", batch_size=AT_ONCE, log_batch=AT_ONCE)
    trace = simulate(network, images, settings, torch.device("cpu"))
    check_proved(trace)
    fired = np.diff(trace.positive_spikes + trace.negative_spikes, axis=0, prepend=0) > 0
    last_spike = (fired * np.arange(1, steps + 1)[:, None]).max(axis=0)
    size, differences = network.architecture.image_size, []
    for part in images.split(AT_ONCE):
        counts = network.settled_counts(network.input_current(part))
        differences.append(differing(counts, quantized.counts(central_images(part, size).double())))
    final = (trace.positive_spikes[-1], trace.negative_spikes[-1], trace.synops[-1], last_spike)
    return Outcome(torch.from_numpy(trace.final_predictions), *map(torch.from_numpy, final), torch.cat(differences))


def differing(counts: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Neurons of each image that have another count, int64 [N]."""
    return torch.stack([(a != b).sum(dim=(1, 2, 3)) for a, b in zip(counts, expected, strict=True)]).sum(dim=0)


def compare(network: QuantizedCNN, images: Tensor, labels: Tensor, steps: int) -> dict[str, Any]:
    """Both rules on the same images, and the trained network as it is.

    Raises:
        QuantspikeError: not every image is at rest before the last step: what is not finished cannot be compared.
    """
    size = network.architecture.image_size
    with torch.inference_mode():
        plain = network(channels_last(central_images(images, size))).argmax(1)
        published = PublishedNetwork(network)
        outcomes = {
            "published": published.run(central_images(images, size).double(), steps),
            "ours": run_ours(convert(network, WEIGHT_BITS), images, published, steps),
        }
    for rule, outcome in outcomes.items():
        if (late := int((outcome.last_spike >= steps).sum())) > 0:
            raise QuantspikeError(f"{late} images are not at rest after {steps} steps ({rule}): name more with --steps")
    neurons = network.architecture.neurons * len(images)
    return {
        "machine": machine(torch.device("cpu")),
        "n": {"images": len(images), "steps": steps, "neurons": network.architecture.neurons},
        "k": network.k,
        "turned_channels": published.turned_channels,
        "plain_accuracy": share(plain == labels),
        "same_prediction": share(outcomes["published"].predictions == outcomes["ours"].predictions),
        **{
            name: {
                "accuracy": share(outcome.predictions == labels),
                "agrees_with_plain": share(outcome.predictions == plain),
                "positive_spikes": outcome.positive.double().mean().item(),
                "negative_spikes": outcome.negative.double().mean().item(),
                "synops": outcome.synops.double().mean().item(),
                "last_spike": int(outcome.last_spike.max()),
                "differing_neurons": int(outcome.differing.sum()) / neurons,
                "images_without_difference": share(outcome.differing == 0),
            }
            for name, outcome in outcomes.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows = {
        "accuracy": "{:.2%}",
        "agrees_with_plain": "{:.2%}",
        "positive_spikes": "{:,.0f}",
        "negative_spikes": "{:,.0f}",
        "synops": "{:,.0f}",
        "last_spike": "{}",
        "differing_neurons": "{:.4%}",
        "images_without_difference": "{:.1%}",
    }
    lines = ["| measure | published rule | ours |", "|---|---|---|"]
    for name, form in rows.items():
        values = [form.format(result[rule][name]) for rule in ("published", "ours")]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(values)} |")
    lines += [
        "",
        f"plain network {result['plain_accuracy']:.2%}, same prediction by both {result['same_prediction']:.2%}",
    ]
    lines += [f"channels turned round: {result['turned_channels']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
