"""Trained networks as MLflow models: kept with their runs, registered by name, the best of each k under an alias."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantspike.errors import QuantspikeError
from quantspike.tracking.store import SUPERSEDED, locked, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

WEIGHTS = "quantspike.weights"
"""Tag: SHA-256 of the weights that lie in a run's folder `model`."""

# Tags of a version: what it is to be called if it is the best, by what that is found, and among which.
_ALIAS = "quantspike.alias"
_ACCURACY = "quantspike.accuracy"
_EXPERIMENT = "quantspike.experiment"

_OURS = "quantspike.networks"
"""Tag: `true` for a registered name that such versions stand under."""

_FOLDER = "model"


@dataclass(frozen=True)
class TrackedModel:
    """A trained network.

    Attributes:
        name: under which it is registered, such as `quantspike-cnn1`.
        alias: that the best of all models of its kind bears, such as `paper-k1`.
        accuracy: by which the best is found, 0 to 1.
        digest: SHA-256 of its weights.
        load: gives the module, on the CPU and in evaluation mode, and inputs for it as an array [N, ...].
    """

    name: str
    alias: str
    accuracy: float
    digest: str
    load: Callable[[], tuple[Any, Any]]


def keep_model(client: MlflowClient, uri: str, run_id: str, model: TrackedModel) -> bool:
    """Puts a model into a run and registers it, unless the run's tags say that it is there; whether anything changed.

    Raises:
        QuantspikeError: the model cannot be loaded or saved, or the run was deleted meanwhile.
    """
    run = client.get_run(run_id)
    version = _version(client, model.name, run_id)
    # A version may have been deleted from the registry.
    there = run.data.tags.get(WEIGHTS) == model.digest and version is not None
    if not there:
        with _saved(model) as folder, locked(uri):
            if client.get_run(run_id).info.lifecycle_stage != "active":
                raise QuantspikeError("its run was deleted meanwhile; publish again")
            client.log_artifacts(run_id, str(Path(folder) / _FOLDER), _FOLDER)
            version = _version(client, model.name, run_id) or _make_version(client, model.name, run_id)
            # Last, so that a kill in between is made good the next time.
            client.set_tag(run_id, WEIGHTS, model.digest)
    assert version is not None
    tagged = _tag(client, version, run.info.experiment_id, model)
    return tagged or not there


def _tag(client: MlflowClient, version: ModelVersion, experiment: str, model: TrackedModel) -> bool:
    """Writes down what `name_best_models` goes by, also where name or version was made by hand; whether it had to."""
    if client.get_registered_model(model.name).tags.get(_OURS) != "true":
        client.set_registered_model_tag(model.name, _OURS, "true")
    wanted = {_ALIAS: model.alias, _ACCURACY: repr(model.accuracy), _EXPERIMENT: experiment}
    changed = {name: value for name, value in wanted.items() if version.tags.get(name) != value}
    for name, value in changed.items():
        client.set_model_version_tag(model.name, version.version, name, value)
    return bool(changed)


def name_best_models(client: MlflowClient, experiment: str, current: Collection[str]) -> set[str]:
    """Gives each alias to the most accurate of its models, the oldest of several; takes it away where there is none.

    What counts is what lies in the store: which weights are at hand here makes no difference. Versions whose runs are
    superseded or deleted are tagged so, and bear no alias.

    Args:
        client: of the store.
        experiment: its number; versions from others are left alone.
        current: ids of all runs that are neither superseded nor deleted.

    Returns:
        Ids of the runs whose models came to an alias.
    """
    moved: set[str] = set()
    for registered in _names(client):
        moved |= _name_best(client, registered, experiment, current)
    return moved


def _names(client: MlflowClient) -> Iterator[RegisteredModel]:
    token: str | None = None
    while token != "":
        page = client.search_registered_models(f"tags.`{_OURS}` = 'true'", page_token=token)
        yield from page
        token = page.token or ""


def _name_best(
    client: MlflowClient, registered: RegisteredModel, experiment: str, current: Collection[str]
) -> set[str]:
    name, holders = registered.name, registered.aliases
    best: dict[str, ModelVersion] = {}
    for version in sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version)):
        alias = version.tags.get(_ALIAS)
        if alias is None or version.tags.get(_EXPERIMENT) != experiment:  # somebody else's
            continue
        superseded = version.run_id not in current
        if superseded != (version.tags.get(SUPERSEDED) == "true"):
            client.set_model_version_tag(name, version.version, SUPERSEDED, str(superseded).lower())
        if not superseded and (alias not in best or _accuracy(version) > _accuracy(best[alias])):
            best[alias] = version
        elif superseded and holders.get(alias) == version.version:
            client.delete_registered_model_alias(name, alias)
    moved = {alias: version for alias, version in best.items() if holders.get(alias) != version.version}
    for alias, version in moved.items():
        client.set_registered_model_alias(name, alias, version.version)
    return {str(version.run_id) for version in moved.values()}


def _accuracy(version: ModelVersion) -> float:
    """That of a version, which somebody may have damaged: then it is the worst of all."""
    try:
        accuracy = float(version.tags.get(_ACCURACY, ""))
    except ValueError:
        return -math.inf
    return accuracy if math.isfinite(accuracy) else -math.inf


def _saved(model: TrackedModel) -> tempfile.TemporaryDirectory[str]:
    """A folder of its own that holds the model in MLflow's form."""
    try:
        folder = tempfile.TemporaryDirectory()
        try:
            _save(model, Path(folder.name) / _FOLDER)
        except BaseException:
            folder.cleanup()
            raise
    except QuantspikeError:
        raise
    except Exception as error:  # torch's export has many ways to fail, and the disk may be full
        raise QuantspikeError(f"{type(error).__name__}: {one_line(str(error))}") from error
    return folder


def _save(model: TrackedModel, path: Path) -> None:
    """Writes MLflow's form of the module, with the types and shapes of what goes in and comes out.

    Recent versions of MLflow export the graph (torch.export), so that the model can be loaded without this package.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    module, example = model.load()
    with torch.inference_mode():
        scores = module(torch.from_numpy(example)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's export warns of weights that are not on the CPU; these are
        mlflow.pytorch.save_model(
            module,
            str(path),
            signature=infer_signature(example, scores),
            input_example=example,
            # Named, since MLflow would find them out by loading the model in a new process, for half a minute.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
        )
        for exported in path.glob("data/*.pt2"):
            _forget_the_source(exported)


def _forget_the_source(path: Path) -> None:
    """Takes out of an exported graph where each operation stood in the code, which names folders of this machine."""
    import torch

    program = torch.export.load(path)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def _make_version(client: MlflowClient, name: str, run_id: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    wanted = f"name = '{name}'"
    if not client.search_registered_models(wanted):
        try:
            client.create_registered_model(name)
        except MlflowException:
            if not client.search_registered_models(wanted):  # otherwise another process was quicker
                raise
    return client.create_model_version(name, f"runs:/{run_id}/{_FOLDER}", run_id)


def _version(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The version that came from a run."""
    return next(iter(client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")), None)
