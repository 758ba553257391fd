"""Goes on training at another rate, from the first phase's weights, averages and Adam moments.

reads:   data/<profile>/images.safetensors, data/<profile>/<model>-<k>-<seed>/train.safetensors;
         data, width, train and finetune of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/finetune.safetensors (the network whose results count)
         metrics/<profile>/<model>-<k>-<seed>/finetune.csv (loss and accuracies by epoch)
"""

from quantspike import cli
from quantspike.checkpoints import load_checkpoint, resume_adam, save_checkpoint
from quantspike.curves import print_epoch, write_epochs
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.training import FINETUNE, Schedule, hold_out, splits, train


def main(params: Params, chain: Chain) -> None:
    profile, device = params.profiles[chain.profile], resolve_device(params.device)
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    checkpoint = load_checkpoint(chain.data / "train.safetensors", architecture, chain.k)
    network = checkpoint.network.to(device)
    optimizer = resume_adam(checkpoint, profile.finetune.learning_rate)
    training, test = splits(dataset, device)
    training, validation = hold_out(training, profile.train.validation, chain.seed)
    schedule = Schedule(
        FINETUNE, profile.finetune.epochs, profile.train.batch_size, profile.data.crop, profile.train.flip, chain.seed
    )
    epochs = train(network, optimizer, schedule, training, test, validation, report=print_epoch)
    save_checkpoint(chain.data / "finetune.safetensors", network)
    write_epochs(chain.metrics / "finetune.csv", epochs)


if __name__ == "__main__":
    cli.chain_stage(main, __doc__)
