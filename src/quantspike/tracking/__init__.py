"""MLflow: the only package that knows it. Importing it does not import MLflow; using it does."""

from __future__ import annotations

from quantspike.tracking.live import LiveRun
from quantspike.tracking.models import TrackedModel
from quantspike.tracking.reconcile import PublishReport, publish, published_views
from quantspike.tracking.runs import TrackedData, TrackedRun
from quantspike.tracking.store import TrackingError, enabled, shown_uri, tracking_uri
from quantspike.tracking.view import OVERVIEW, view_tags

__all__ = [
    "OVERVIEW",
    "LiveRun",
    "PublishReport",
    "TrackedData",
    "TrackedModel",
    "TrackedRun",
    "TrackingError",
    "enabled",
    "publish",
    "published_views",
    "shown_uri",
    "tracking_uri",
    "view_tags",
]
