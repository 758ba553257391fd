"""Trains a network in full precision, from its initial weights, for every k to go on from.

Where the profile says `pretrain: {epochs: 0}`, there is nothing to do, and what is written says so. A training that was
stopped or killed goes on where its last state was saved, in data/resume/; the last one is kept, so that other epochs,
rates or schedules of `train` alone cost nothing here. Under torchrun the processes share every batch, and the first one
writes.

reads:   data/<profile>/images.safetensors; data, width, pretrain and train of the profile in params.yaml
writes:  data/<profile>/<model>-fp32-<seed>/pretrain.safetensors (weights, batch-norm averages, Adam moments)
         metrics/<profile>/<model>-fp32-<seed>/pretrain.csv (loss and accuracies by epoch)
"""

from pathlib import Path

from quantspike import cli
from quantspike.adam import make_adam
from quantspike.checkpoints import save_checkpoint, save_no_network
from quantspike.curves import write_epochs
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.distributed import Group
from quantspike.measuring import hold_out, splits
from quantspike.networks import new_network
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.phases import made_with, resume_store, run_phase, settings_of, sole_training, watcher
from quantspike.training import PRETRAIN, Training


def main(params: Params, chain: Chain) -> None:
    with sole_training(chain) as group:
        if params.profiles[chain.profile].pretrain.epochs:
            run(params, chain, group)
        elif group.rank == 0:
            save_no_network(chain.pretrained)
            write_epochs(chain.metrics / "pretrain.csv", [])
            print(f"{chain.profile}: nothing to pretrain, every k starts from its initial weights")


def run(params: Params, chain: Chain, group: Group) -> None:
    profile, device = params.profiles[chain.profile].train, group.own_device(resolve_device(params.device))
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    settings = settings_of(params, chain, PRETRAIN, device)
    network = new_network(architecture, "fp32", chain.seed).to(device)
    optimizer = make_adam(network, settings.learning_rate, settings.weight_decay)
    images, test = splits(dataset, device)
    images, validation = hold_out(images, profile.validation, chain.seed)
    training = Training(network, optimizer, settings, images, test, validation, group)
    store = resume_store(params, chain, PRETRAIN, Path(__file__), [chain.dataset])
    epochs = run_phase(training, store, params.checkpoint_minutes, watcher(params, chain, PRETRAIN))
    if group.rank == 0:
        save_checkpoint(chain.pretrained, network, optimizer, made_with(params, chain, training, store))
        write_epochs(chain.metrics / "pretrain.csv", epochs)


if __name__ == "__main__":
    cli.chain_stage(main, __doc__, shared=True, full_precision=True)
