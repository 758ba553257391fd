"""Draw figures in one style, as PNG and SVG; no other package knows matplotlib.

In: what `comparison` collects from results or logs. Out: a figure for each name below, which `style.save` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from matplotlib.figure import Figure

from quantspike.reporting.figures.accuracy import accuracy_speed, settling
from quantspike.reporting.figures.comparison import Comparison
from quantspike.reporting.figures.costs import energy, layers, sops, sparsity
from quantspike.reporting.figures.frontier import frontier
from quantspike.reporting.figures.training import training

Draw = Callable[[Comparison], Figure]

LOG_FIGURES: Mapping[str, Draw] = MappingProxyType(
    {"accuracy_speed": accuracy_speed, "sparsity": sparsity, "sops": sops, "frontier": frontier}
)
"""Figures that need no more than logs in the published format."""

FIGURES: Mapping[str, Draw] = MappingProxyType(
    {**LOG_FIGURES, "layers": layers, "settling": settling, "energy": energy, "training": training}
)
"""All figures."""
