"""Show runs in MLflow; no other package knows it, and importing these modules does not import it.

In go the points of a training (`live.LiveRun`) and the results of finished runs (`publish.publish`); out come runs,
registered networks and ready-made comparisons in an MLflow store.
"""
