"""One colour for each precision, the same in every figure and in MLflow."""

from __future__ import annotations

from quantspike.params import LARGEST_K, Precision

FULL_PRECISION = "#333333"
"""Dark grey, for fp32 and for everything that has no k."""

# Okabe and Ito's colours, told apart by colour-blind readers too. The strongest come first, since few precisions
# are shown together; yellow, faint on white, comes last.
_BASE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442")

_GREYS = ("#777777", "#aaaaaa", "#555555", "#c4c4c4")

# Beyond k = 6 the seven colours repeat, mixed with black (0) or white (255): (what to mix in, its share).
_SHADES = ((0, 0.0), (0, 0.4), (255, 0.5), (0, 0.7))


def spare_color(index: int) -> str:
    """Return a grey for what has no k, such as logs of unknown origin; there are four."""
    return _GREYS[index % len(_GREYS)]


def color_of(k: Precision) -> str:
    """Return the colour of a precision as `#rrggbb`: dark grey for fp32, a different one for each k from 0 to 24.

    Raises:
        ValueError: k lies outside 0 to 24.
    """
    if k == "fp32":
        return FULL_PRECISION
    if not 0 <= k <= LARGEST_K:
        raise ValueError(f"colours are defined for fp32 and for k from 0 to {LARGEST_K}, found {k!r}")
    shade, index = divmod(k, len(_BASE))
    other, share = _SHADES[shade]
    red, green, blue = (int(_BASE[index][i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round((1 - share) * part + share * other) for part in (red, green, blue))
    return "#" + "".join(f"{part:02x}" for part in mixed)
