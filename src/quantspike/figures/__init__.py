"""Figures in one style: of results, and of anybody's logs. The only package that knows matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from matplotlib.figure import Figure

from quantspike.figures.accuracy import accuracy_speed, settling
from quantspike.figures.comparison import Comparison, compare_logs, compare_results
from quantspike.figures.costs import layers, sops, sparsity
from quantspike.figures.energy import energy
from quantspike.figures.frontier import frontier
from quantspike.figures.style import save
from quantspike.figures.training import training

Draw = Callable[[Comparison], Figure]

LOG_FIGURES: Mapping[str, Draw] = MappingProxyType(
    {"accuracy_speed": accuracy_speed, "sparsity": sparsity, "sops": sops, "frontier": frontier}
)
"""Figures that logs in the published format suffice for, by the names of their files."""

FIGURES: Mapping[str, Draw] = MappingProxyType(
    {**LOG_FIGURES, "layers": layers, "settling": settling, "energy": energy, "training": training}
)
"""All figures, by the names of their files."""

__all__ = [
    "FIGURES",
    "LOG_FIGURES",
    "Comparison",
    "Draw",
    "accuracy_speed",
    "compare_logs",
    "compare_results",
    "energy",
    "frontier",
    "layers",
    "save",
    "settling",
    "sops",
    "sparsity",
    "training",
]
