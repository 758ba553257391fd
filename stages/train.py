"""Trains a network from its initial weights: the first phase.

reads:   data/<profile>/images.safetensors; data, width and train of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/train.safetensors (weights, batch-norm averages, Adam moments)
         metrics/<profile>/<model>-<k>-<seed>/train.csv (loss and accuracies by epoch)
"""

from quantspike import cli
from quantspike.checkpoints import save_checkpoint
from quantspike.curves import print_epoch, write_epochs
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.networks import new_network
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.training import TRAIN, Schedule, hold_out, make_adam, splits, train


def main(params: Params, chain: Chain) -> None:
    profile, device = params.profiles[chain.profile], resolve_device(params.device)
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    network = new_network(architecture, chain.k, chain.seed).to(device)
    optimizer = make_adam(network, profile.train.learning_rate)
    training, test = splits(dataset, device)
    training, validation = hold_out(training, profile.train.validation, chain.seed)
    schedule = Schedule(
        TRAIN, profile.train.epochs, profile.train.batch_size, profile.data.crop, profile.train.flip, chain.seed
    )
    epochs = train(network, optimizer, schedule, training, test, validation, report=print_epoch)
    save_checkpoint(chain.data / "train.safetensors", network, optimizer)
    write_epochs(chain.metrics / "train.csv", epochs)


if __name__ == "__main__":
    cli.chain_stage(main, __doc__)
