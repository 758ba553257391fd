"""Goes on training at another rate, from the first phase's weights, averages and Adam moments.

A training that was stopped or killed goes on where its last state was saved, in data/resume/. Under torchrun the
processes share every batch, and the first one writes.

reads:   data/<profile>/images.safetensors, data/<profile>/<model>-<k>-<seed>/train.safetensors;
         data, width, pretrain, train and finetune of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/finetune.safetensors (the network whose results count)
         metrics/<profile>/<model>-<k>-<seed>/finetune.csv (loss and accuracies by epoch)
"""

from pathlib import Path

from quantspike import cli
from quantspike.checkpoints import load_checkpoint, resume_adam, save_checkpoint
from quantspike.curves import write_epochs
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.distributed import Group
from quantspike.measuring import hold_out, splits
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.phases import (
    discard_states,
    made_with,
    resume_store,
    run_phase,
    settings_of,
    sole_training,
    watcher,
)
from quantspike.training import FINETUNE, TRAIN, Training


def main(params: Params, chain: Chain) -> None:
    with sole_training(chain) as group:
        run(params, chain, group)


def run(params: Params, chain: Chain, group: Group) -> None:
    profile, device = params.profiles[chain.profile].train, group.own_device(resolve_device(params.device))
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    settings = settings_of(params, chain, FINETUNE, device)
    trained = chain.data / "train.safetensors"
    checkpoint = load_checkpoint(trained, architecture, chain.k)
    network = checkpoint.network.to(device)
    optimizer = resume_adam(checkpoint, settings.learning_rate, settings.weight_decay)
    images, test = splits(dataset, device)
    images, validation = hold_out(images, profile.validation, chain.seed)
    training = Training(network, optimizer, settings, images, test, validation, group)
    store = resume_store(params, chain, FINETUNE, Path(__file__), [chain.dataset, trained])
    epochs = run_phase(training, store, params.checkpoint_minutes, watcher(params, chain, FINETUNE))
    if group.rank == 0:
        origin = made_with(params, chain, training, store, checkpoint)
        save_checkpoint(chain.data / "finetune.safetensors", network, made_with=origin)
        write_epochs(chain.metrics / "finetune.csv", epochs)
        discard_states(chain, TRAIN, checkpoint)


if __name__ == "__main__":
    cli.chain_stage(main, __doc__, shared=True)
