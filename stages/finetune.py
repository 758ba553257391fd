"""Continue training from the first phase's weights, averages and moments, as integers with `finetune.integer_aware`.

A training that was stopped or killed resumes after its last complete epoch (data/resume/). Under torchrun the
processes share every batch, and the first one writes.

reads:   data/<profile>/images.safetensors, data/<profile>/<model>-<k>-<seed>/train.safetensors;
         data.crop, width, recipe, train, finetune and convert of the profile in params.yaml
writes:  data/<profile>/<model>-<k>-<seed>/finetune.safetensors (the network whose results count)
         metrics/<profile>/<model>-<k>-<seed>/finetune.csv (loss and accuracies by epoch)
"""

from quantspike.paths import Run
from quantspike.workflow import cli


def main(run: Run, device: str) -> None:
    from quantspike.workflow.training import (
        train_stage,  # torch takes seconds: command line and params are checked first
    )

    train_stage(run, device, "finetune")


if __name__ == "__main__":
    cli.run_stage(main, __doc__, shared=True)
