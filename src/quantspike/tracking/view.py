"""The view that MLflow's page of an experiment opens with: which columns, which charts, in which order.

MLflow keeps such views in tags of the experiment and does not document their format, which was read off a view saved
by hand in MLflow 3.17.2. Where another version does not know a part of it, the page shows its default for that part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantspike.tracking.store import SUPERSEDED

VIEW = "overview"
"""Name by which an address refers to the view: `viewStateShareKey=overview`."""

VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of the experiment that holds what `view_state` returns."""

_CURRENT = f"tags.`{SUPERSEDED}` = 'false'"
_BY_NAME = "tags.`mlflow.runName`"
_FIRST = "chosen"
_SECTIONS = ("final", "snn", "finetune", "train")
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


def view_state(name: str, title: str = "Accuracy and SOPs", condition: str = _CURRENT) -> str:
    """Value of the tag `VIEW_TAG`, the same at every call.

    Args:
        name: what the menu "Views" calls the view.
        title: of the first section of charts. MLflow makes further ones by itself, one for each prefix of a metric.
        condition: search filter for the runs.
    """
    state = {**_NOTHING_HIDDEN, **_table(condition), **_charts(title)}
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
