"""Ready-made comparisons in MLflow's page: which runs, columns and charts it opens with, and in which order.

MLflow keeps such views in tags of the experiment and does not document their format, which was read off a view saved
by hand in MLflow 3.17.2. An address that names no view opens the page as usual.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from quantspike.tracking.store import connect, errors_explained, find_experiment, sqlite_file

_TAG = "mlflow.sharedViewState."  # prefix of the tags that hold views; an address names the rest
_OVERVIEW = "overview"  # the view of all runs

_FIRST = "chosen"
_SECTIONS = ("final", "snn", "finetune", "train", "baseline", "live")
_FINALS = ("ann_accuracy", "snn_accuracy", "stable_step", "synops", "positive_spikes", "negative_spikes")
_COLUMNS = ("params.`k`", *(f"metrics.`final/{name}`" for name in _FINALS), "params.`data.name`")


def view_tags(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return tags of the experiment: a view of all runs, and one for each profile and network.

    Args:
        pairs: profile and model.
    """
    tags = {f"{_TAG}{_OVERVIEW}": _view("all runs", "")}
    for profile, model in dict.fromkeys(pairs):
        condition = f"tags.profile = '{profile}' and tags.model = '{model}'"
        tags[f"{_TAG}{profile}-{model}"] = _view(f"{profile} {model}", condition)
    return tags


def published_views(uri: str) -> tuple[str, list[str]] | None:
    """Return the number of the experiment, which its page is found by, and the names of its views, all runs first.

    Before anything is published, return None.

    Raises:
        QuantspikeError: the store cannot be used, or the experiment is deleted.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return None
    with errors_explained(uri):
        experiment = find_experiment(connect(uri), uri)
    if experiment is None:
        return None
    names = sorted(name.removeprefix(_TAG) for name in experiment.tags if name.startswith(_TAG))
    return str(experiment.experiment_id), sorted(names, key=lambda name: name != _OVERVIEW)


def _view(name: str, condition: str) -> str:
    """Return a view of the runs that a search filter accepts, under the name that the menu "Views" shows."""
    # MLflow adds sections of charts itself, one for each prefix of a metric.
    state = {**_table(condition), **_charts("Accuracy and SOPs")}
    return _compact({"name": name, "createdAt": 0, "updatedAt": 0, "state": _compact(state)})


def _table(condition: str) -> dict[str, Any]:
    return {
        **{"searchFilter": condition, "orderByKey": "tags.`mlflow.runName`", "orderByAsc": True},
        "selectedColumns": list(_COLUMNS),
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *_COLUMNS, "duration"],
        "columnWidths": dict.fromkeys(_COLUMNS[1:-1], 150),
    }


def _charts(title: str) -> dict[str, Any]:
    charts = [
        _line("snn/accuracy", xAxisScaleType="log"),
        _line("snn/synops"),
        # A title cannot be set; the x axis says what this chart is.
        _line("snn/accuracy", xAxisKey="metric", selectedXAxisMetricKey="snn/synops"),
        {"type": "BAR", "metricKey": "final/snn_accuracy"},
    ]
    return {
        "compareRunCharts": [
            {**chart, "uuid": f"{_FIRST}-{number}", "metricSectionId": _FIRST, "runsCountToCompare": 20}
            for number, chart in enumerate(charts)
        ],
        "compareRunSections": [_section(_FIRST, title, columns=2), *(_section(name, name) for name in _SECTIONS)],
        # Otherwise MLflow sorts the sections by name.
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _line(metric: str, **axis: str) -> dict[str, Any]:
    # Without a smoothness of 0 MLflow draws running means.
    return {"type": "LINE", "metricKey": metric, "lineSmoothness": 0, "xAxisKey": "step", **axis}


def _section(uuid: str, name: str, **size: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": False, **size}


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))
