"""Convert the trained network to an integer network.

reads:   data/<profile>/<model>-<k>-<seed>/finetune.safetensors, data/<profile>/images.safetensors;
         data.crop, width and convert of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/convert.safetensors (the integer network)
         metrics/<profile>/<model>-<k>-<seed>/convert.json (sizes and ranges of every layer)
"""

from quantspike.conversion.convert import conversion_report, convert
from quantspike.conversion.integer import save_integer_network
from quantspike.data.dataset import load_dataset
from quantspike.files import write_json
from quantspike.paths import Run
from quantspike.training.checkpoints import load_network
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    network = load_network(run, load_dataset(run.dataset)).network
    converted = convert(network, run.settings.convert.weight_bits)
    save_integer_network(run.integer_network, converted)
    write_json(run.metrics / "convert.json", conversion_report(converted))
    print(f"{run.key}: {len(converted.layers)} layers converted to {converted.weight_bits}-bit integers")


if __name__ == "__main__":
    cli.run_stage(main, __doc__)
