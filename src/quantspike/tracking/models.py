"""Keep trained networks in MLflow: with their runs, and registered by name, one version per run."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantspike.data.preparation import central_images
from quantspike.errors import QuantspikeError
from quantspike.networks.cnn import QuantizedCNN
from quantspike.training.evaluation import channels_last

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tags of a version: the alias that it may get, and the seed, of which the lowest one gets it.
_ALIAS = "quantspike.alias"
_SEED = "quantspike.seed"

_PREFIX = "quantspike-"
_FOLDER = "model"


class ImageClassifier(nn.Module):
    """A network in evaluation mode that prepares the images itself.

    Forward: uint8 images [N, C, H, W] as they are stored -> class scores float32 [N, classes]. The central square that
    the network sees is cut out and standardized as in training.
    """

    def __init__(self, network: QuantizedCNN) -> None:
        super().__init__()
        self.network = network
        if network.weight_bits is not None:
            network.fix_grids()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        prepared = central_images(images, self.network.architecture.image_size)
        scores: Tensor = self.network(channels_last(prepared))
        return scores


@dataclass(frozen=True)
class TrackedModel:
    """A trained network.

    Attributes:
        model: name of the network, such as `cnn1`; it is registered as `quantspike-cnn1`.
        alias: shared by all seeds, such as `paper-k1`; it points to the lowest seed.
        seed: of the run.
        load: return the module, on the CPU and in evaluation mode, and an input for it.
        files: further files to keep with the run, such as the integer network.
    """

    model: str
    alias: str
    seed: int
    load: Callable[[], tuple[nn.Module, Tensor]]
    files: Sequence[Path] = ()


def keep_model(client: MlflowClient, run_id: str, model: TrackedModel) -> bool:
    """Save a model with its run and register it; return False if the run has a registered version already.

    Raises:
        QuantspikeError: the model cannot be loaded or saved.
    """
    from mlflow.exceptions import MlflowException

    name = f"{_PREFIX}{model.model}"
    if client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        _save(model, Path(folder) / _FOLDER)
        client.log_artifacts(run_id, folder)
    for path in model.files:
        client.log_artifact(run_id, str(path), "network")
    with suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    tags = {_ALIAS: model.alias, _SEED: str(model.seed)}
    client.create_model_version(name, f"runs:/{run_id}/{_FOLDER}", run_id, tags=tags)
    return True


def update_registry(client: MlflowClient, runs: Sequence[Run]) -> None:
    """Delete the versions of replaced runs, and point each alias to the version with the lowest seed.

    Versions and aliases that users created are left alone, as are versions of other experiments.

    Args:
        client: of the store.
        runs: all runs of the experiment, deleted ones included.
    """
    deleted = {run.info.run_id: run.info.lifecycle_stage == "deleted" for run in runs}
    for registered in client.search_registered_models(f"name LIKE '{_PREFIX}%'", max_results=1000):
        name = registered.name
        versions = [found for found in client.search_model_versions(f"name = '{name}'") if _ALIAS in found.tags]
        current = [version for version in versions if deleted.get(version.run_id) is False]
        for version in versions:
            if deleted.get(version.run_id):
                client.delete_model_version(name, version.version)
        # The last one of each alias counts.
        current.sort(key=lambda version: (int(version.tags[_SEED]), int(version.version)), reverse=True)
        for alias, version in {version.tags[_ALIAS]: version for version in current}.items():
            if registered.aliases.get(alias) != version.version:
                client.set_registered_model_alias(name, alias, version.version)


def _save(model: TrackedModel, path: Path) -> None:
    """Write MLflow's form of the module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's export warns of weights that are not on the CPU; these are
            _export(*model.load(), path)
    except Exception as error:  # torch's export has many ways to fail, and the disk may be full
        raise QuantspikeError(str(error)) from error


def _export(module: nn.Module, example: Tensor, path: Path) -> None:
    """Save a module with types and shapes of its inputs and outputs.

    Recent versions of MLflow export the graph (torch.export), so that it can be loaded without this package.
    """
    import mlflow.pytorch
    from mlflow.models import infer_signature

    with torch.inference_mode():
        scores = module(example)
    mlflow.pytorch.save_model(
        module,
        str(path),
        signature=infer_signature(example.numpy(), scores.numpy()),
        input_example=example.numpy(),
        # Otherwise MLflow would load the model in a new process to find these out, which takes half a minute.
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
    )
    for exported in path.glob("data/*.pt2"):
        _remove_source_locations(exported)


def _remove_source_locations(path: Path) -> None:
    """Remove from an exported graph the lines of code behind each operation, which name folders of this machine."""
    program = torch.export.load(path)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
