"""Measure the trained network on the test images, before conversion.

reads:   data/<profile>/images.safetensors, data/<profile>/<model>-<k>-<seed>/finetune.safetensors;
         data.crop and width of the profile in params.yaml, and the settings that the network was trained with, to
         compare them
writes:  metrics/<profile>/<model>-<k>-<seed>/evaluate.json (accuracy, cost, which images, provenance)
         data/<profile>/<model>-<k>-<seed>/evaluate.safetensors (class scores of every test image)
"""

from quantspike.paths import Run
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    from quantspike.workflow.training import evaluate_run  # torch takes seconds: params are checked first

    report = evaluate_run(run, device, "evaluate")
    print(f"{run.key}: the trained network classifies {report['accuracy']:.2%} of {report['images']} images correctly")


if __name__ == "__main__":
    cli.run_stage(main, __doc__)
