"""Runs the integer network as spikes on the test images, step by step, and proves the result.

Full precision has no spikes: for fp32 the files are written without rows. Under torchrun the images are shared
between its processes, and the first one writes.

reads:   data/<profile>/<model>-<k>-<seed>/integer/network.safetensors, .../evaluate.safetensors,
         data/<profile>/images.safetensors, metrics/<profile>/<model>-<k>-<seed>/ann.json;
         simulate of the profile in params.yaml
writes:  in metrics/<profile>/<model>-<k>-<seed>/: snn.csv, layers.csv (measures by step, and by layer),
         snn.json (totals), metrics.json (the few that DVC compares), certificate.json (equality with the
         integer network), logs/k<k>/*.txt
"""

import torch

from quantspike import cli
from quantspike.data import load_dataset
from quantspike.distributed import Group, processes
from quantspike.evaluation import load_scores
from quantspike.files import read_json, write_text
from quantspike.integer import load_integer_network
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.simulation import simulate_shared
from quantspike.simulation.engines import engine_device
from quantspike.simulation.measures import check_proved, verdict, write_logs, write_measures, write_no_measures


def main(params: Params, chain: Chain) -> None:
    with processes() as group:
        if chain.quantized:
            run(params, chain, group)
        elif group.rank == 0:
            write_text(chain.logs / "none.txt", "Full precision has no spikes to log.\n")
            write_no_measures(chain.metrics, read_json(chain.metrics / "ann.json")["accuracy"])
            print(f"{chain.key}: full precision has no spikes to simulate")


def run(params: Params, chain: Chain, group: Group) -> None:
    settings = params.profiles[chain.profile].simulate
    device = engine_device(settings.engine, params.device)
    network = load_integer_network(chain.integer_network)
    dataset = load_dataset(chain.dataset)
    ann_predictions = load_scores(chain.data / "evaluate.safetensors", len(dataset.test_images)).argmax(1)
    trace = simulate_shared(network, torch.from_numpy(dataset.test_images), settings, device, group)
    if trace is None:
        return
    write_measures(chain.metrics, trace, network.architecture, dataset.test_labels, ann_predictions.numpy(), settings)
    write_logs(chain.logs, trace, dataset.test_labels, settings.log_batch)
    check_proved(trace)
    print(f"{chain.key}: {verdict(trace)}")


if __name__ == "__main__":
    cli.chain_stage(main, __doc__, shared=True)
