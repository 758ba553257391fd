"""Whole batches in PyTorch: one convolution per layer and step, in a format that holds every sum exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantspike.conversion.exact import convolve, exact_format
from quantspike.conversion.integer import IntegerLayer, IntegerNetwork, check_membrane
from quantspike.networks.architecture import Layer, fan_outs
from quantspike.simulation.neuron import NeuronParameters, NeuronState, fire
from quantspike.simulation.trace import Recording


@dataclass(frozen=True, eq=False)
class StepCounts:
    """What the running images did in one step, layer by layer.

    Attributes:
        positive: spikes of +1, int64 [L, n].
        negative: spikes of -1, int64 [L, n].
        synops: synapses that these spikes reach, int64 [L, n].
        settled: whether all neurons of a layer are settled, bool [L, n].
    """

    positive: Tensor
    negative: Tensor
    synops: Tensor
    settled: Tensor


@dataclass(frozen=True, eq=False)
class _Layer:
    weight: Tensor
    shape: Layer
    neurons: NeuronParameters
    fan_out: Tensor


class DenseEngine:
    """Run batches of one network on one device; no state is kept between batches."""

    def __init__(self, network: IntegerNetwork, device: torch.device) -> None:
        self._network = network
        self._device = device
        fans = fan_outs(network.architecture)
        self._layers = [
            _Layer(
                layer.weight.to(device, _format(layer, index, device)).contiguous(memory_format=torch.channels_last),
                layer.shape,
                NeuronParameters(
                    *(_per_channel(v, device) for v in (layer.threshold, layer.half_threshold, network.limit(layer)))
                ),
                torch.from_numpy(fan).to(device),
            )
            for index, (layer, fan) in enumerate(zip(network.layers, fans, strict=True))
        ]

    def run(self, input_current: Tensor, steps: int, settle_limit: int, delay: int = 0, first: int = 0) -> Recording:
        """Run a batch until every image is settled; see `Engine`.

        A settled image is dropped from the batch, since nothing changes in it any more.
        """
        with torch.inference_mode():
            batch = self.start(input_current, first)
            recording = Recording.blank(steps, [torch.zeros_like(count, device="cpu") for count in batch.net_spikes()])
            step = 0
            while len(batch.images) and step < settle_limit:
                step += 1
                counts = batch.step(step, delay)
                settled = counts.settled.all(dim=0)
                running = (batch.images - first).cpu().numpy()
                if step <= steps:
                    for name in ("positive", "negative", "synops", "settled"):
                        getattr(recording, name)[step - 1][:, running] = getattr(counts, name).cpu().numpy()
                    predictions = self._network.logits(batch.net_spikes()[-1]).argmax(dim=1).cpu().numpy()
                    # A settled image keeps its class.
                    recording.predictions[step - 1 :, running] = predictions
                if bool(settled.any()):
                    recording.settled_step[running[settled.cpu().numpy()]] = step
                    _keep_counts(recording, batch, settled, first)
                    batch.keep(~settled)
            _keep_counts(recording, batch, torch.ones_like(batch.images, dtype=torch.bool), first)
            return recording

    def start(self, input_current: Tensor, first: int = 0) -> Batch:
        """Return a batch before its first step.

        Args:
            input_current: int64 [N, out, size, size] of the encoding layer.
            first: number of the batch's first image in the whole set, for messages.

        Raises:
            QuantspikeError: a membrane reaches 2^30.
        """
        n = len(input_current)
        states = []
        for layer in self._network.layers:
            size = layer.shape.out_size
            empty = torch.zeros(
                (n, layer.shape.out_channels, size, size), dtype=torch.int32, device=self._device
            ).contiguous(memory_format=torch.channels_last)
            states.append(NeuronState(empty + _per_channel(layer.bias, self._device), empty))
        # The only input that the encoding layer ever gets.
        membrane = states[0].membrane + input_current.to(self._device)
        check_membrane(membrane, 0, first)
        states[0] = replace(states[0], membrane=membrane.int().contiguous(memory_format=torch.channels_last))
        return Batch(self._layers, states, torch.arange(first, first + n, device=self._device))


class Batch:
    """The running images of a batch.

    Attributes:
        images: numbers of the running images in the whole set, int64 [n].
    """

    def __init__(self, layers: list[_Layer], states: list[NeuronState], images: Tensor) -> None:
        self._layers = layers
        self._states = states
        self.images = images

    def step(self, step: int, delay: int) -> StepCounts:
        """Advance all running images by one step, in layer order, so that a spike crosses the network within it.

        Args:
            step: its number, from 1.
            delay: steps that each layer waits for the one before.
        """
        counts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        spikes: Tensor | None = None
        for index, layer in enumerate(self._layers):
            state = self._states[index]
            if spikes is not None:
                membrane = state.membrane + _current(spikes, layer)
                check_membrane(membrane, index, self.images)
                state = replace(state, membrane=membrane.int())
            spikes, self._states[index], settled = fire(layer.neurons, state, waiting=step <= index * delay)
            by_position = spikes.abs().sum(dim=1, dtype=torch.int64)
            total, net = by_position.sum(dim=(1, 2)), spikes.sum(dim=(1, 2, 3), dtype=torch.int64)
            synops = (by_position * layer.fan_out).sum(dim=(1, 2))
            counts.append(((total + net) // 2, (total - net) // 2, synops, settled.flatten(1).all(dim=1)))
        return StepCounts(*(torch.stack(parts) for parts in zip(*counts, strict=True)))

    def net_spikes(self) -> list[Tensor]:
        """Return the net counts of every layer, int32 [n, C, H, W]."""
        return [state.net_spikes for state in self._states]

    def keep(self, chosen: Tensor) -> None:
        """Keep the chosen images (bool [n]) and drop the others."""
        self._states = [NeuronState(state.membrane[chosen], state.net_spikes[chosen]) for state in self._states]
        self.images = self.images[chosen]


def _format(layer: IntegerLayer, index: int, device: torch.device) -> torch.dtype:
    """Return a format that holds every partial sum of a step, at most S_o, in any order."""
    largest_sum = int(layer.absolute_sums.max())
    return exact_format(layer.shape, largest_sum, layer.largest_weight, device, f"layer {index + 1}")


def _keep_counts(recording: Recording, batch: Batch, chosen: Tensor, first: int) -> None:
    images = batch.images[chosen].cpu() - first
    for kept, counts in zip(recording.net_spikes, batch.net_spikes(), strict=True):
        kept[images] = counts[chosen].cpu()


def _current(spikes: Tensor, layer: _Layer) -> Tensor:
    """Return the input of one step from spikes in {-1, 0, 1}, in an integer type wide enough to add it to membranes."""
    sums = convolve(spikes, layer.weight, layer.shape, layer.weight.dtype)
    return sums.long() if sums.dtype == torch.float64 else sums.int()


def _per_channel(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, torch.int32)[:, None, None]
