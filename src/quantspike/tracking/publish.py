"""Publish runs from result files: a run that is there is left alone, an outdated one is replaced."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantspike.errors import QuantspikeError
from quantspike.files import file_sha256
from quantspike.params import Setting
from quantspike.tracking.models import TrackedModel, keep_model, update_registry
from quantspike.tracking.store import KEY, errors_explained, locked, log, one_line, open_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FINGERPRINT = "quantspike.fingerprint"  # tag: SHA-256 of the results, set when the run is complete
_APPEARANCE = "quantspike.appearance"  # tag: SHA-256 of what can be changed in place

_SECONDS_TO_ANSWER = 30  # a server may pass networks on to a slower store


@dataclass(frozen=True)
class TrackedRun:
    """What MLflow shows of one run.

    Params, curves, finals and files are the results: where they differ, the run is replaced. Name, tags,
    description and figures are changed in place, so that a figure of all k does not replace every run it shows.

    Attributes:
        name: that MLflow shows, such as `cnn1 k=1`.
        key: tells the run from all others, such as `paper-cnn1-1-0`.
        params: settings.
        tags: further tags.
        description: Markdown.
        curves: points (step, value) by metric name.
        finals: single values by metric name.
        files: result files.
        figures: pictures.
        model: the trained network, if its file is available; added to the run as soon as it is.
    """

    name: str
    key: str
    params: Mapping[str, Setting]
    tags: Mapping[str, str]
    description: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    finals: Mapping[str, float]
    files: Sequence[Path]
    figures: Sequence[Path] = ()
    model: TrackedModel | None = None

    def fingerprint(self) -> str:
        """Return the SHA-256 of the results."""
        params = {name: str(value) for name, value in self.params.items()}
        curves = {name: list(points) for name, points in self.curves.items()}
        return _sha256([params, curves, dict(self.finals), _hashes(self.files)])

    def appearance(self) -> str:
        """Return the SHA-256 of what can be changed in place."""
        return _sha256([self.name, dict(self.tags), self.description, _hashes(self.figures)])


@dataclass(frozen=True)
class PublishReport:
    """How many runs were created, replaced, updated in place and left alone, and what did not work."""

    created: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.created} created, {self.replaced} replaced, {self.updated} updated, {self.unchanged} unchanged"


def publish(runs: Sequence[TrackedRun], *, uri: str, views: Mapping[str, str]) -> PublishReport:
    """Make the store show each of `runs` once, with its present results; doing so again changes nothing.

    Runs with other keys are left alone. A run replaces every other run of its key: outdated, live or incomplete.

    Args:
        runs: what to show.
        uri: address of the store, see `store.tracking_uri`.
        views: tags of the experiment, see `view.view_tags`.

    Raises:
        QuantspikeError: MLflow is not installed, the server does not answer, or the database cannot be used.
    """
    counts: Counter[str] = Counter()
    problems: list[str] = []
    with errors_explained(uri):
        client, experiment = open_experiment(uri, views)
    with errors_explained(uri, _SECONDS_TO_ANSWER):
        from mlflow.entities import ViewType

        for run in runs:
            with locked(uri):
                outcome, run_id = _publish_run(client, experiment, run)
                try:
                    if run.model and keep_model(client, run_id, run.model) and outcome == "unchanged":
                        outcome = "updated"
                except (QuantspikeError, OSError) as error:
                    problems.append(f"the network of {run.name} is not in MLflow: {one_line(error)}")
            counts[outcome] += 1
        with locked(uri):
            every = client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=50_000)  # MLflow's limit
            update_registry(client, every)
    return PublishReport(**counts, problems=tuple(problems))


def _publish_run(client: MlflowClient, experiment: str, run: TrackedRun) -> tuple[str, str]:
    """Return what was done, in a word of `PublishReport`, and the run's id."""
    fingerprint = run.fingerprint()
    existing = client.search_runs([experiment], f"tags.`{KEY}` = '{run.key}'")
    same = next((found for found in existing if found.data.tags.get(_FINGERPRINT) == fingerprint), None)
    if same is not None:
        run_id = str(same.info.run_id)
        outcome = "updated" if _update(client, same, run) else "unchanged"
    else:
        run_id = _create(client, experiment, run, fingerprint)
        outcome = "replaced" if any(_FINGERPRINT in found.data.tags for found in existing) else "created"
    for found in existing:
        if found is not same:
            client.delete_run(found.info.run_id)
    return outcome, run_id


def _create(client: MlflowClient, experiment: str, run: TrackedRun, fingerprint: str) -> str:
    now = round(1000 * time.time())
    tags = {**run.tags, KEY: run.key}
    run_id = str(client.create_run(experiment, start_time=now, tags=tags, run_name=run.name).info.run_id)
    points = [(name, value, now, step) for name, curve in run.curves.items() for step, value in curve]
    points += [(name, value, now, 0) for name, value in run.finals.items()]
    log(client, run_id, points, {name: str(value) for name, value in run.params.items()})
    for path in run.files:
        client.log_artifact(run_id, str(path), "metrics")
    client.set_terminated(run_id, status="FINISHED", end_time=now)
    _update(client, client.get_run(run_id), run)
    # Last, so that a run without it is known to be incomplete.
    client.set_tag(run_id, _FINGERPRINT, fingerprint)
    return run_id


def _update(client: MlflowClient, found: Run, run: TrackedRun) -> bool:
    """Change name, tags, description and figures in place; return False if nothing has changed."""
    run_id, appearance = found.info.run_id, run.appearance()
    if found.data.tags.get(_APPEARANCE) == appearance:
        return False
    client.update_run(run_id, name=run.name)
    for name, value in {**run.tags, "mlflow.note.content": run.description}.items():
        client.set_tag(run_id, name, value)
    for path in run.figures:
        client.log_artifact(run_id, str(path), "figures")
    client.set_tag(run_id, _APPEARANCE, appearance)
    return True


def _hashes(paths: Sequence[Path]) -> list[tuple[str, str]]:
    return [(path.name, file_sha256(path)) for path in paths]


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
