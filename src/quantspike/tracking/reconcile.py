"""Runs in an MLflow store, brought in line with what the result files say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError
from quantspike.tracking.models import keep_model, name_best_models
from quantspike.tracking.runs import TrackedData, TrackedRun, place_in_run
from quantspike.tracking.store import (
    CHAIN,
    COMPLETE,
    EXPERIMENT,
    LIVE,
    METRICS_A_BATCH,
    PARAMS_A_BATCH,
    SECONDS_TO_PUBLISH,
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
"""Tag: the files of a run that are renewed in place, with the first digits of their SHA-256, as JSON."""

_MOST_RUNS = 50_000  # MLflow gives no more at once

_SUPERSEDED_COLOR = "#cccccc"
_SUPERSEDED_SUFFIX = " (superseded)"
_COMMIT = "mlflow.source.git.commit"
_LONGEST_DIGEST = 36  # MLflow takes no longer digest of a data set


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


@dataclass
class _Done:
    """A run, its id in the store, and a word of `PublishReport` for each thing that was done."""

    run: TrackedRun
    run_id: str
    words: list[str]


class _Unreadable(QuantspikeError):
    """A result file cannot be read, or not twice the same: another process may be at work on it."""


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
    done: list[_Done] = []
    problems: list[str] = []
    with errors_explained(uri, SECONDS_TO_PUBLISH):
        client = open_store(uri)
        number = find_or_make_experiment(client, uri, experiment)
        with locked(uri):
            _tag_experiment(client, number, tags or {})
            for run in runs:
                try:
                    done.append(_bring_in_line(client, number, run))
                except _Unreadable as error:
                    problems.append(f"{run.name} is not in MLflow: {error}")
        # Later, since they take seconds each, and since a network that cannot be kept must not keep runs away.
        problems += _keep_models(client, uri, done)
        with locked(uri):
            _note_updates(done, name_best_models(client, number, _current_runs(client, number)))
    words = Counter(word for one in done for word in one.words)
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


def _bring_in_line(client: MlflowClient, experiment: str, run: TrackedRun) -> _Done:
    """Leaves exactly one current run of the chain."""
    with _reading(run):
        fingerprint, last_change = run.fingerprint, run.last_change()
    complete, live = [], []
    for found in client.search_runs([experiment], filter_string=f"tags.`{CHAIN}` = '{run.key}'"):
        if found.data.tags.get(COMPLETE) == "true":
            complete.append(found)
        elif found.data.tags.get(LIVE) != "true":
            client.delete_run(found.info.run_id)
        elif found.info.start_time <= last_change:
            live.append(found)
        # A training that began after these results were written is of later ones, and goes on filling its run.
    same = next((found for found in complete if found.data.tags.get(FINGERPRINT) == fingerprint), None)
    if same is None:
        run_id, done = _create(client, experiment, run, fingerprint, last_change, live), ["created"]
    else:
        run_id = same.info.run_id
        done = ["updated" if _refresh(client, same, run) else "unchanged"]
    outdated = [found for found in complete if found is not same and found.data.tags.get(SUPERSEDED) != "true"]
    for found in outdated:
        _supersede(client, found)
    for found in live:
        client.delete_run(found.info.run_id)
    return _Done(run, run_id, done + ["superseded"] * len(outdated))


@contextmanager
def _reading(run: TrackedRun) -> Iterator[None]:
    """Tells the trouble of a file from one of the store."""
    try:
        yield
    except OSError as error:
        if str(error.filename) in {str(path) for path, _ in [*run.artifacts, *run.extras]}:
            raise _Unreadable(f"{error.filename} cannot be read: {error.strerror}") from error
        raise


def _create(
    client: MlflowClient, experiment: str, run: TrackedRun, fingerprint: str, end: int, live: Sequence[Run]
) -> str:
    from mlflow.entities import Param

    start = end - round(1000 * run.seconds)
    with _reading(run):
        extras = {EXTRAS: _extras_tag(run.extras_digests())} if run.extras else {}
    tags = {**_changeable_tags(run, run.commit), **extras, CHAIN: run.key, FINGERPRINT: fingerprint}
    run_id = str(client.create_run(experiment, start_time=start, tags=tags, run_name=run.name).info.run_id)
    params = [Param(name, str(value)) for name, value in run.params.items()]
    for first in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[first : first + PARAMS_A_BATCH], synchronous=True)
    metrics = [*_metrics(start, run), *(metric for found in live for metric in _system_metrics(client, found))]
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH], synchronous=True)
    if run.data is not None:
        _log_data(client, run_id, run.data)
    with _reading(run):
        for path, folder in [*run.artifacts, *run.extras]:
            client.log_artifact(run_id, str(path), folder or None)
        if run.fingerprint != fingerprint:
            raise _Unreadable("its files changed meanwhile; publish again")
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
    present = found.data.tags
    # The commit stays the one at which these results were published first.
    wanted = _changeable_tags(run, present.get(_COMMIT, run.commit))
    changed = {name: value for name, value in wanted.items() if present.get(name) != value}
    renamed = found.info.run_name != run.name
    if renamed:
        client.update_run(found.info.run_id, name=run.name)
    renewed = _renew_extras(client, found, run)
    _set_tags(client, found, changed)
    return renamed or renewed or bool(changed)


def _renew_extras(client: MlflowClient, found: Run, run: TrackedRun) -> bool:
    """Sends those that are not in the run as they are now; those that are not at hand stay there."""
    before = _extras_in(found.data.tags)
    with _reading(run):
        now = run.extras_digests()
        sent = {name for name in now if before.get(name) != now[name]}
        if not sent:
            return False
        # While they are sent, the tag does not speak of them: a kill in between is made good the next time.
        _set_tags(client, found, {EXTRAS: _extras_tag({name: before[name] for name in before if name not in sent})})
        for path, folder in run.extras:
            if place_in_run(path, folder) in sent:
                client.log_artifact(found.info.run_id, str(path), folder or None)
    _set_tags(client, found, {EXTRAS: _extras_tag(before | now)})
    return True


def _keep_models(client: MlflowClient, uri: str, done: Sequence[_Done]) -> list[str]:
    """Puts networks into runs that lack them; gives what went wrong."""
    problems = []
    for one in done:
        if one.run.model is None:
            continue
        try:
            if keep_model(client, uri, one.run_id, one.run.model):
                _note_updates([one], {one.run_id})
        except QuantspikeError as error:
            problems.append(f"the network of {one.run.name} is not in MLflow: {error}")
    return problems


def _current_runs(client: MlflowClient, experiment: str) -> set[str]:
    """Ids of all whole runs that are neither superseded nor deleted."""
    current = f"tags.`{COMPLETE}` = 'true' and tags.`{SUPERSEDED}` = 'false'"
    return {run.info.run_id for run in client.search_runs([experiment], current, max_results=_MOST_RUNS)}


def _note_updates(done: Sequence[_Done], updated: set[str]) -> None:
    for one in done:
        if one.run_id in updated and one.words[0] == "unchanged":
            one.words[0] = "updated"


def _changeable_tags(run: TrackedRun, commit: str | None) -> dict[str, str]:
    tags = {**run.tags, "mlflow.note.content": run.description, SUPERSEDED: "false"}
    if commit is not None:
        tags[_COMMIT] = commit
        tags["mlflow.note.content"] += f"\n\nPublished at commit `{commit}`"
    return tags


def _extras_tag(digests: Mapping[str, str]) -> str:
    return json.dumps(digests, sort_keys=True)


def _extras_in(tags: Mapping[str, str]) -> dict[str, str]:
    """Digests of the extras that a run has, by their place in it; of a damaged tag what can be read."""
    try:
        content = json.loads(tags.get(EXTRAS, "{}"))
    except ValueError:
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: digest for name, digest in entries if isinstance(digest, str)}


def _supersede(client: MlflowClient, found: Run) -> None:
    # A killed process may have renamed it already.
    client.update_run(found.info.run_id, name=found.info.run_name.removesuffix(_SUPERSEDED_SUFFIX) + _SUPERSEDED_SUFFIX)
    _set_tags(client, found, {"mlflow.runColor": _SUPERSEDED_COLOR, SUPERSEDED: "true"})


def _set_tags(client: MlflowClient, found: Run, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(found.info.run_id, name, value)
