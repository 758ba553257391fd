"""How a chain's run is called, tagged and described by its settings: the same while it trains and when it is published.

Imports neither torch nor pandas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantspike.palette import color_of
from quantspike.params import Params
from quantspike.paths import Chain


def run_name(chain: Chain, params: Params) -> str:
    """Names only what tells runs apart: `cnn1 k=1`, with profile and seed where there are several."""
    parts = [chain.profile] if len(params.run.profile) > 1 else []
    parts += [chain.model, f"k={chain.k}" if chain.quantized else "fp32"]
    parts += [f"seed={chain.seed}"] if len(params.run.seed) > 1 else []
    return " ".join(parts)


def run_tags(chain: Chain, params: Params) -> dict[str, str]:
    """Tags by which MLflow groups and filters runs in places where it does not offer params, and the colour of k."""
    return {
        **{"profile": chain.profile, "model": chain.model, "k": str(chain.k), "seed": str(chain.seed)},
        "recipe": params.profiles[chain.profile].train.recipe,
        "mlflow.runColor": color_of(chain.k),
        # Set here, since MLflow fills these with the user's name and the path of the script.
        **{"mlflow.user": "quantspike", "mlflow.source.name": "quantspike", "mlflow.source.type": "LOCAL"},
    }


def run_settings(chain: Chain, params: Params) -> dict[str, str | int | float]:
    """What the results depend on, under dotted names such as `train.epochs`."""
    # The source of the images may be a path on someone's machine; the data set's name and hash say more.
    profile = params.profiles[chain.profile].model_dump(exclude={"data": {"source"}, "pretrain": True})
    return {
        **{"profile": chain.profile, "model": chain.model, "k": chain.k, "seed": chain.seed},
        "layers": params.models[chain.model].layers,
        **dict(_flat(profile)),
        **params.profiles[chain.profile].training_settings,
    }


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested sections under dotted names."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
