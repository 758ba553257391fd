"""What MLflow is to show of one chain, whatever it may be showing now."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantspike.tracking.models import TrackedModel

_DIGITS = 8  # of a digest that only tells versions of one file apart


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
            at hand, and then those stay that the run has.
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
        files = [(path.name, folder, _digest(path)) for path, folder in self.artifacts]
        params = {name: str(value) for name, value in self.params.items()}
        curves = {name: list(points) for name, points in self.curves.items()}
        content = [params, curves, dict(self.finals), files, self.data and self.data.digest]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def extras_digests(self) -> dict[str, str]:
        """First digits of the SHA-256 of each extra file, by its place in the run."""
        return {place_in_run(path, folder): _digest(path)[:_DIGITS] for path, folder in self.extras}

    def last_change(self) -> int:
        """When the newest of the run's artifacts was written, in milliseconds; now, if it has none."""
        times = [path.stat().st_mtime for path, _ in self.artifacts]
        return round(1000 * max(times, default=time.time()))


def place_in_run(path: Path, folder: str) -> str:
    """Where a file goes to within a run's artifacts."""
    return f"{folder}/{path.name}" if folder else path.name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
