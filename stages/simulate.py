"""Run the integer network as spikes on the test images, step by step, and prove the result.

Under torchrun the processes share the images, and the first one writes.

reads:   data/<profile>/<model>-<k>-<seed>/convert.safetensors, .../evaluate.safetensors,
         data/<profile>/images.safetensors; simulate of the profile in params.yaml, and the settings that its
         integer network was converted with, to compare them
writes:  in metrics/<profile>/<model>-<k>-<seed>/, with the first simulate.layer_delay: simulate.csv and
         simulate_layers.csv (measures by step, and by layer), simulate.json (values after the last step),
         certificate.json (equality with the integer network), logs/k<k>/*.txt (the published format); with all of
         them: simulate_delays.csv (measures by layer delay and step)
"""

from quantspike.paths import Run
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    # torch takes seconds: command line and params are checked first.
    import torch

    from quantspike.conversion.integer import load_integer_network
    from quantspike.data.dataset import load_dataset
    from quantspike.distributed import process_group
    from quantspike.networks.architecture import architecture_of
    from quantspike.networks.cnn import description
    from quantspike.simulation.measures import check_proved, verdict, write_logs, write_measures
    from quantspike.simulation.run import engine_device, simulate_shared
    from quantspike.training.evaluation import load_scores

    settings = run.settings.simulate
    dataset = load_dataset(run.dataset)
    architecture = architecture_of(run, dataset.channels, dataset.classes)
    clip, weight_bits = run.settings.recipe.clip, run.settings.convert.weight_bits
    expected = description(architecture, run.k, clip=clip, weight_bits=weight_bits)
    network = load_integer_network(run.integer_network, expected)
    ann_predictions = load_scores(run.scores, len(dataset.test_images)).argmax(1)
    with process_group() as group:
        images = torch.from_numpy(dataset.test_images)
        traces = simulate_shared(network, images, settings, engine_device(settings.engine, device), group)
    if traces is not None:
        labels = dataset.test_labels
        write_measures(run.metrics, traces, architecture, labels, ann_predictions.numpy(), settings)
        write_logs(run.logs, traces[settings.layer_delay[0]], labels, settings.log_batch)
        check_proved(traces)
        for delay, trace in traces.items():
            print(f"{run.key}, layer delay {delay}: {verdict(trace)}")


if __name__ == "__main__":
    cli.run_stage(main, __doc__, shared=True)
