"""Train a quantized network: the first phase, from initial weights or from the baseline.

A training that was stopped or killed resumes after its last complete epoch (data/resume/). Under torchrun the
processes share every batch, and the first one writes.

reads:   data/<profile>/images.safetensors; with `start: baseline`, data/<profile>/<model>-fp32-<seed>/
         baseline.safetensors; data.crop, width, recipe, baseline and train of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/train.safetensors (weights, batch-norm averages, the optimizer's moments)
         metrics/<profile>/<model>-<k>-<seed>/train.csv (loss and accuracies by epoch)
"""

from quantspike.paths import Run
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    from quantspike.workflow.training import (
        train_stage,  # torch takes seconds: command line and params are checked first
    )

    train_stage(run, device, "train")


if __name__ == "__main__":
    cli.run_stage(main, __doc__, shared=True)
