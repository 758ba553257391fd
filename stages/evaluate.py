"""Measures the trained network, not as spikes, on the test images.

reads:   data/<profile>/images.safetensors, data/<profile>/<model>-<k>-<seed>/finetune.safetensors;
         data and width of the profile in params.yaml
writes:  metrics/<profile>/<model>-<k>-<seed>/ann.json (accuracy, cost, which images, what it was trained with)
         data/<profile>/<model>-<k>-<seed>/evaluate.safetensors (class scores of every test image)
"""

from quantspike import cli
from quantspike.checkpoints import load_checkpoint
from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.evaluation import evaluate, save_scores
from quantspike.files import write_json
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.phases import discard_states, shown
from quantspike.training import FINETUNE


def main(params: Params, chain: Chain) -> None:
    device = resolve_device(params.device)
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    checkpoint = load_checkpoint(chain.data / "finetune.safetensors", architecture, chain.k)
    scores, report = evaluate(checkpoint.network.to(device), dataset)
    save_scores(chain.data / "evaluate.safetensors", scores)
    write_json(chain.metrics / "ann.json", report | {"made_with": shown(checkpoint.made_with)})
    discard_states(chain, FINETUNE, checkpoint)
    print(
        f"{chain.key}: the trained network classifies {report['accuracy']:.2%} of {report['images']} images correctly"
    )


if __name__ == "__main__":
    cli.chain_stage(main, __doc__)
