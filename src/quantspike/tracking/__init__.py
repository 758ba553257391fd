"""MLflow: the only package that knows it. Importing it does not import MLflow; using it does."""

from __future__ import annotations

from quantspike.tracking.live import LiveRun
from quantspike.tracking.models import TrackedModel
from quantspike.tracking.reconcile import (
    PublishReport,
    TrackedData,
    TrackedRun,
    experiment_id,
    publish,
)
from quantspike.tracking.store import TrackingError, enabled, shown_uri, tracking_uri
from quantspike.tracking.view import VIEW, VIEW_TAG, view_state

__all__ = [
    "VIEW",
    "VIEW_TAG",
    "LiveRun",
    "PublishReport",
    "TrackedData",
    "TrackedModel",
    "TrackedRun",
    "TrackingError",
    "enabled",
    "experiment_id",
    "publish",
    "shown_uri",
    "tracking_uri",
    "view_state",
]
