"""The views that MLflow's page of an experiment can open with: which runs, columns and charts, in which order.

MLflow keeps such views in tags of the experiment and does not document their format, which was read off a view saved
by hand in MLflow 3.17.2 and tried in 3.5.0 too. An address that names no view opens the page as usual.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from quantspike.tracking.store import SUPERSEDED

_TAG = "mlflow.sharedViewState."
"""Tags of the experiment that hold views begin so; the rest is the name by which an address refers to one."""

OVERVIEW = "overview"
"""Name of the view of all runs."""

_CURRENT = f"tags.`{SUPERSEDED}` = 'false'"
_BY_NAME = "tags.`mlflow.runName`"
_FIRST = "chosen"
_SECTIONS = ("final", "snn", "finetune", "train", "pretrain")
_COLUMNS = (
    *("params.`k`", "metrics.`final/ann_accuracy`", "metrics.`final/snn_accuracy`", "metrics.`final/stable_step`"),
    *("metrics.`final/synops`", "metrics.`final/positive_spikes`", "metrics.`final/negative_spikes`"),
    "attributes.`Dataset`",
)
# MLflow's own columns, always there.
_FIXED_FIRST = ("attributes.`Run Name`", "runDateAndNestInfo")
_FIXED_LAST = ("duration",)
_COLUMN_WIDTH = 150

# Older versions take the view for the whole state of the page, and break where one of these is missing.
_NOTHING_HIDDEN: dict[str, Any] = {
    **{"runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsVisibilityMap": {}, "groupsExpanded": {}},
    **{"groupBy": None, "viewMaximized": False, "runListHidden": False, "autoRefreshEnabled": True},
}


def view_tags(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Tags of the experiment: a view of all runs, and one for each profile and network.

    Args:
        pairs: profile and model.
    """
    tags = {f"{_TAG}{OVERVIEW}": _view_state("all runs", _CURRENT)}
    for profile, model in dict.fromkeys(pairs):
        condition = f"{_CURRENT} and tags.profile = '{profile}' and tags.model = '{model}'"
        tags[f"{_TAG}{profile}-{model}"] = _view_state(f"{profile} {model}", condition)
    # Version 3.5 guesses the kind otherwise, by a redirection that loses the charts.
    return tags | {"mlflow.experimentKind": "custom_model_development"}


def view_names(tags: Mapping[str, str]) -> list[str]:
    """Names of the views in an experiment's tags, that of all runs first."""
    names = sorted(name.removeprefix(_TAG) for name in tags if name.startswith(_TAG))
    return sorted(names, key=lambda name: name != OVERVIEW)


def _view_state(name: str, condition: str) -> str:
    """A view under the name that the menu "Views" shows, of the runs that a search filter lets through."""
    # MLflow makes further sections of charts by itself, one for each prefix of a metric.
    state = {**_NOTHING_HIDDEN, **_table(condition), **_charts("Accuracy and SOPs")}
    # Versions with a menu of views read `name`, `createdAt` and `state`; older ones read the fields themselves.
    return _compact({**state, "name": name, "createdAt": 0, "updatedAt": 0, "state": _compact(state)})


def _table(condition: str) -> dict[str, Any]:
    order = [*_FIXED_FIRST, *_COLUMNS, *_FIXED_LAST]
    return {
        **{"searchFilter": condition, "orderByKey": _BY_NAME, "orderByAsc": True},
        **{"selectedColumns": list(_COLUMNS), "columnOrder": order},
        "columnWidths": {column: _COLUMN_WIDTH for column in _COLUMNS if column.startswith("metrics.")},
    }


def _charts(title: str) -> dict[str, Any]:
    charts = [
        _line("snn/accuracy", xAxisScaleType="log"),
        _line("snn/synops"),
        # No title of one's own is shown: what this chart is, its x axis says.
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
