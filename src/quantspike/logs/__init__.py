"""Simulation logs in the published format, whoever wrote them: read, checked, shown as a table and drawn."""

from __future__ import annotations

from quantspike.logs.checks import FILES
from quantspike.logs.reading import Logs, find_logs, read_logs

__all__ = ["FILES", "Logs", "find_logs", "read_logs"]
