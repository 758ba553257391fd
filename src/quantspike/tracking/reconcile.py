"""Runs in an MLflow store, brought in line with what the result files say."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError
from quantspike.tracking.models import TrackedModel, keep_model, name_best_models
from quantspike.tracking.store import (
    CHAIN,
    COMPLETE,
    EXPERIMENT,
    LIVE,
    METRICS_A_BATCH,
    PARAMS_A_BATCH,
    SUPERSEDED,
    errors_explained,
    find_or_make_experiment,
    locked,
    open_store,
    sqlite_file,
)
from quantspike.tracking.view import view_names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

FINGERPRINT = "quantspike.fingerprint"
EXTRAS = "quantspike.extras"

_SUPERSEDED_COLOR = "#cccccc"
_SUPERSEDED_SUFFIX = " (superseded)"
_COMMIT = "mlflow.source.git.commit"
_LONGEST_DIGEST = 36  # MLflow takes no longer digest of a data set


@dataclass(frozen=True)
class TrackedData:
    """The data set that a run was made from: its name, the SHA-256 of its content, its sizes as JSON has them."""

    name: str
    digest: str
    profile: Mapping[str, int]


@dataclass(frozen=True)
class TrackedRun:
    """What is to be shown of one chain.

    Attributes:
        name: what the run is called, such as `cnn1 k=1`.
        key: identity of the chain; at most one run with it is not superseded.
        params: settings.
        tags: further tags. They, the name and the description are refreshed in place when they change.
        description: Markdown.
        curves: by metric name, points (step, value).
        finals: by metric name, single values.
        artifacts: pairs of a file and the folder it goes to within the run.
        seconds: how long the run took.
        extras: files like the artifacts that are renewed in place when they change. They show other runs too, such
            as one picture of all k, so that a new k beside it makes no other run of this one; or they are not always
            at hand.
        commit: git commit at which the results are published; the first one stays.
        data: its data set.
        model: the trained network, if its file is at hand; kept with the run as soon as it is.
    """

    name: str
    key: str
    params: Mapping[str, str | int | float]
    tags: Mapping[str, str]
    description: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    finals: Mapping[str, float]
    artifacts: Sequence[tuple[Path, str]]
    seconds: float = 0.0
    extras: Sequence[tuple[Path, str]] = ()
    commit: str | None = None
    data: TrackedData | None = None
    model: TrackedModel | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that MLflow cannot change afterwards: params, metrics, artifacts and data set."""
        files = _digests(self.artifacts)
        params = {name: str(value) for name, value in self.params.items()}
        curves = {name: list(points) for name, points in self.curves.items()}
        content = [params, curves, dict(self.finals), files, self.data and self.data.digest]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def extras_fingerprint(self) -> str:
        """SHA-256 of the files that are renewed in place."""
        return hashlib.sha256(json.dumps(_digests(self.extras)).encode()).hexdigest()


@dataclass(frozen=True)
class PublishReport:
    """How many runs were made, renewed in place, left alone, marked as superseded, and what went wrong beside them."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    superseded: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.created} created, {self.updated} updated, {self.unchanged} unchanged, {self.superseded} superseded"
        )


def publish(
    runs: Sequence[TrackedRun], *, uri: str, experiment: str = EXPERIMENT, tags: Mapping[str, str] | None = None
) -> PublishReport:
    """Brings the store in line with `runs`; doing so again changes nothing.

    A run whose fingerprint is in the store stays. Otherwise a new one is made, and what stood for the same chain is
    marked as superseded, never deleted. Only what a kill left half-written is deleted and made again, and what a
    training sent live, whose system metrics the new run takes over.

    Args:
        runs: what is to be shown; runs of other chains in the store are left alone.
        uri: address of the store, as given by `tracking_uri`.
        experiment: name of the experiment, which is made if it is not there.
        tags: of the experiment.

    Raises:
        TrackingError: MLflow is not installed, the server is away, or the database cannot be used.
    """
    with errors_explained(uri):
        client = open_store(uri)
        number = find_or_make_experiment(client, uri, experiment)
        with locked(uri):
            _tag_experiment(client, number, tags or {})
            done = [_bring_in_line(client, number, run) for run in runs]
        # Later, since they take seconds each, and since a network that cannot be kept must not keep runs away.
        problems = _keep_models(client, uri, runs, done)
    words = Counter(word for _, words in done for word in words)
    return PublishReport(**words, problems=tuple(problems))


def published_views(uri: str, experiment: str = EXPERIMENT) -> tuple[str, list[str]] | None:
    """Number of the experiment in the store, by which its page is found, and the names of its views.

    Returns:
        `None` if nothing was published yet.

    Raises:
        TrackingError: as for `publish`.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return None
    with errors_explained(uri):
        found = open_store(uri).get_experiment_by_name(experiment)
        return None if found is None else (str(found.experiment_id), view_names(found.tags))


def _tag_experiment(client: MlflowClient, number: str, tags: Mapping[str, str]) -> None:
    present = client.get_experiment(number).tags
    for name, value in tags.items():
        if present.get(name) != value:
            client.set_experiment_tag(number, name, value)


def _bring_in_line(client: MlflowClient, experiment: str, run: TrackedRun) -> tuple[str, list[str]]:
    """Leaves exactly one current run of the chain: its id, and a word of `PublishReport` for each thing done."""
    fingerprint = run.fingerprint
    complete, live = [], []
    for found in client.search_runs([experiment], filter_string=f"tags.`{CHAIN}` = '{run.key}'"):
        if found.data.tags.get(COMPLETE) == "true":
            complete.append(found)
        elif found.data.tags.get(LIVE) != "true":
            client.delete_run(found.info.run_id)
        elif found.info.start_time <= _last_change(run):
            live.append(found)
        # A training that began after these results were written is of later ones, and goes on filling its run.
    same = next((found for found in complete if found.data.tags.get(FINGERPRINT) == fingerprint), None)
    if same is None:
        run_id, done = _create(client, experiment, run, fingerprint, live), ["created"]
    else:
        run_id = same.info.run_id
        done = ["updated" if _refresh(client, same, run) else "unchanged"]
    outdated = [found for found in complete if found is not same and found.data.tags.get(SUPERSEDED) != "true"]
    for found in outdated:
        _supersede(client, found)
    for found in live:
        client.delete_run(found.info.run_id)
    return run_id, done + ["superseded"] * len(outdated)


def _create(client: MlflowClient, experiment: str, run: TrackedRun, fingerprint: str, live: Sequence[Run]) -> str:
    from mlflow.entities import Param

    end = _last_change(run)
    start = end - round(1000 * run.seconds)
    tags = {**_changeable_tags(run, run.commit), CHAIN: run.key, FINGERPRINT: fingerprint}
    run_id = str(client.create_run(experiment, start_time=start, tags=tags, run_name=run.name).info.run_id)
    params = [Param(name, str(value)) for name, value in run.params.items()]
    for first in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[first : first + PARAMS_A_BATCH], synchronous=True)
    metrics = [*_metrics(start, run), *(metric for found in live for metric in _system_metrics(client, found))]
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH], synchronous=True)
    if run.data is not None:
        _log_data(client, run_id, run.data)
    for path, folder in [*run.artifacts, *run.extras]:
        client.log_artifact(run_id, str(path), folder or None)
    client.set_terminated(run_id, status="FINISHED", end_time=end)
    client.set_tag(run_id, COMPLETE, "true")
    return run_id


def _metrics(start: int, run: TrackedRun) -> list[Metric]:
    from mlflow.entities import Metric

    # A time that follows from the step makes publishing twice give the same points.
    points = [(name, step, value) for name, curve in run.curves.items() for step, value in curve]
    points += [(name, 0, value) for name, value in run.finals.items()]
    return [Metric(name, value, start + 1000 * step, step) for name, step, value in points]


def _system_metrics(client: MlflowClient, live: Run) -> list[Metric]:
    """What was measured of the machine while a training sent its progress: no file knows of it."""
    names = [name for name in live.data.metrics if name.startswith("system/")]
    return [metric for name in names for metric in client.get_metric_history(live.info.run_id, name)]


def _log_data(client: MlflowClient, run_id: str, data: TrackedData) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    entity = Dataset(
        name=data.name,
        digest=data.digest[:_LONGEST_DIGEST],
        source_type="quantspike",
        source=json.dumps({"sha256": data.digest}),
        profile=json.dumps(dict(data.profile)),
    )
    inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training and testing")])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException:  # another publisher has told a server of the same data set at the same moment
        client.log_inputs(run_id, inputs)


def _refresh(client: MlflowClient, found: Run, run: TrackedRun) -> bool:
    """Renews what may change in a run that is there already; returns whether anything differed."""
    run_id = found.info.run_id
    # The commit stays the one at which these results were published first.
    wanted = _changeable_tags(run, found.data.tags.get(_COMMIT, run.commit))
    changed = {name: value for name, value in wanted.items() if found.data.tags.get(name) != value}
    renamed = found.info.run_name != run.name
    if renamed:
        client.update_run(run_id, name=run.name)
    if EXTRAS in changed:
        for path, folder in run.extras:
            client.log_artifact(run_id, str(path), folder or None)
    # The tag comes after the files it speaks of, so that a kill in between is made good the next time.
    _set_tags(client, found, changed)
    return renamed or bool(changed)


def _keep_models(
    client: MlflowClient, uri: str, runs: Sequence[TrackedRun], done: Sequence[tuple[str, list[str]]]
) -> list[str]:
    """Puts networks into runs that lack them, and corrects the words for these; gives what went wrong."""
    problems = []
    current = []
    for run, (run_id, words) in zip(runs, done, strict=True):
        if run.model is None:
            continue
        current.append((run.model, run_id))
        try:
            if keep_model(client, uri, run_id, run.model) and words[0] == "unchanged":
                words[0] = "updated"
        except QuantspikeError as error:
            problems.append(f"the network of {run.name} is not in MLflow: {error}")
    name_best_models(client, current)
    return problems


def _changeable_tags(run: TrackedRun, commit: str | None) -> dict[str, str]:
    tags = {**run.tags, "mlflow.note.content": run.description, SUPERSEDED: "false"}
    if run.extras:
        tags[EXTRAS] = run.extras_fingerprint
    if commit is not None:
        tags[_COMMIT] = commit
        tags["mlflow.note.content"] += f"\n\nPublished at commit `{commit}`"
    return tags


def _digests(files: Sequence[tuple[Path, str]]) -> list[tuple[str, str, str]]:
    return [(path.name, folder, hashlib.sha256(path.read_bytes()).hexdigest()) for path, folder in files]


def _supersede(client: MlflowClient, found: Run) -> None:
    # A killed process may have renamed it already.
    client.update_run(found.info.run_id, name=found.info.run_name.removesuffix(_SUPERSEDED_SUFFIX) + _SUPERSEDED_SUFFIX)
    _set_tags(client, found, {"mlflow.runColor": _SUPERSEDED_COLOR, SUPERSEDED: "true"})


def _set_tags(client: MlflowClient, found: Run, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(found.info.run_id, name, value)


def _last_change(run: TrackedRun) -> int:
    """When the newest of the run's files was written, in milliseconds; now, if it has none."""
    times = [path.stat().st_mtime for path, _ in run.artifacts]
    return round(1000 * max(times, default=time.time()))
