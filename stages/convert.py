"""Converts the trained network to an integer network.

Full precision has no step to count in: for fp32 this stage only notes that there is nothing to convert.

reads:   data/<profile>/<model>-<k>-<seed>/finetune.safetensors, data/<profile>/images.safetensors;
         data, width and convert of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/integer/network.safetensors (a note for fp32)
         metrics/<profile>/<model>-<k>-<seed>/conversion.json (sizes and ranges of every layer)
"""

from quantspike import cli
from quantspike.checkpoints import load_checkpoint
from quantspike.conversion import conversion_report, convert
from quantspike.data import load_dataset
from quantspike.files import write_json, write_text
from quantspike.integer import save_integer_network
from quantspike.params import Params
from quantspike.paths import Chain


def main(params: Params, chain: Chain) -> None:
    if not chain.quantized:
        write_text(chain.integer_network.parent / "none.txt", "Full precision has no integer network.\n")
        write_json(chain.metrics / "conversion.json", {"converted": False})
        print(f"{chain.key}: full precision is not converted")
        return
    dataset = load_dataset(chain.dataset)
    architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
    network = load_checkpoint(chain.data / "finetune.safetensors", architecture, chain.k).network
    converted = convert(network, params.profiles[chain.profile].convert.weight_bits)
    save_integer_network(chain.integer_network, converted)
    write_json(chain.metrics / "conversion.json", conversion_report(converted))
    print(f"{chain.key}: {len(converted.layers)} layers converted to {converted.weight_bits}-bit integers")


if __name__ == "__main__":
    cli.chain_stage(main, __doc__)
