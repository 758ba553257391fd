"""Trains a network of one k: the first phase, from what `pretrain` left or from the initial weights.

A training that was stopped or killed goes on where its last state was saved, in data/resume/. Under torchrun the
processes share every batch, and the first one writes.

reads:   data/<profile>/images.safetensors; if the profile pre-trains, data/<profile>/<model>-fp32-<seed>/
         pretrain.safetensors; data, width, pretrain and train of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/train.safetensors (weights, batch-norm averages, Adam moments)
         metrics/<profile>/<model>-<k>-<seed>/train.csv (loss and accuracies by epoch)
"""

from pathlib import Path

from quantspike import cli
from quantspike.adam import make_adam
from quantspike.checkpoints import load_start, resume_adam, save_checkpoint
from quantspike.curves import write_epochs
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.distributed import Group
from quantspike.measuring import hold_out, splits
from quantspike.networks import new_network
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.phases import (
    check_pretrained,
    made_with,
    resume_store,
    run_phase,
    settings_of,
    sole_training,
    watcher,
)
from quantspike.training import TRAIN, Training


def main(params: Params, chain: Chain) -> None:
    with sole_training(chain) as group:
        run(params, chain, group)


def run(params: Params, chain: Chain, group: Group) -> None:
    profile, device = params.profiles[chain.profile].train, group.own_device(resolve_device(params.device))
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    settings = settings_of(params, chain, TRAIN, device)
    pretrained = params.profiles[chain.profile].pretrain.epochs > 0
    if pretrained:
        start = load_start(chain.pretrained, architecture, chain.k)
        check_pretrained(params, chain, start)
        network = start.network.to(device)
        optimizer = resume_adam(start, settings.learning_rate, settings.weight_decay)
    else:
        start = None
        network = new_network(architecture, chain.k, chain.seed).to(device)
        optimizer = make_adam(network, settings.learning_rate, settings.weight_decay)
    images, test = splits(dataset, device)
    images, validation = hold_out(images, profile.validation, chain.seed)
    training = Training(network, optimizer, settings, images, test, validation, group)
    inputs = [chain.dataset, chain.pretrained] if pretrained else [chain.dataset]
    store = resume_store(params, chain, TRAIN, Path(__file__), inputs)
    epochs = run_phase(training, store, params.checkpoint_minutes, watcher(params, chain, TRAIN))
    if group.rank == 0:
        origin = made_with(params, chain, training, store, start)
        save_checkpoint(chain.data / "train.safetensors", network, optimizer, origin)
        write_epochs(chain.metrics / "train.csv", epochs)


if __name__ == "__main__":
    cli.chain_stage(main, __doc__, shared=True)
