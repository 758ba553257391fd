"""Train a network in full precision, all its phases, and measure it on the test images.

A training that was stopped or killed resumes after its last complete epoch (data/resume/). Under torchrun the
processes share every batch, and the first one writes.

reads:   data/<profile>/images.safetensors; data.crop, width, recipe and baseline of the profile in params.yaml
writes:  data/<profile>/<model>-fp32-<seed>/baseline.safetensors (weights, batch-norm averages, the optimizer's moments)
         metrics/<profile>/<model>-fp32-<seed>/baseline.csv (loss and accuracies by epoch)
         metrics/<profile>/<model>-fp32-<seed>/baseline.json (accuracy, cost, which images, provenance)
"""

from quantspike.paths import Run
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    from quantspike.workflow.training import evaluate_run, train_stage  # torch takes seconds: params are checked first

    train_stage(run, device, "baseline")
    if cli.first_process():
        report = evaluate_run(run, device, "baseline")
        print(f"{run.key}: {report['accuracy']:.2%} of {report['images']} images correct")


if __name__ == "__main__":
    cli.run_stage(main, __doc__, shared=True, baseline=True)
