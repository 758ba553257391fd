"""Results of finished chains as runs in MLflow: what is shown of each, under which name and colour."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantspike import tracking
from quantspike.palette import color_of
from quantspike.params import Params
from quantspike.paths import Chain, plots_folder
from quantspike.results import FILES, ChainResult
from quantspike.tracking import TrackedRun


def publish_results(results: Sequence[ChainResult], params: Params, root: Path) -> None:
    """Brings MLflow in line with the results and prints one line about it.

    Whatever keeps MLflow from working is a warning and no error: the files are the results, MLflow only shows them.

    Args:
        results: finished chains.
        params: the settings they were made with.
        root: the project's folder.
    """
    if not tracking.enabled():
        print("MLflow: tracking is off (QUANTSPIKE_TRACKING), nothing published")
        return
    uri = tracking.tracking_uri(root)
    try:
        report = tracking.publish(tracked_runs(results, params, commit=_head_commit(root)), uri=uri)
    except tracking.TrackingError as error:
        print(
            f"warning: {error}. Nothing is lost, `python stages/publish.py` delivers the runs later",
            file=sys.stderr,
        )
        return
    print(f"MLflow: {report} in {tracking.shown_uri(uri)}")


def tracked_runs(results: Sequence[ChainResult], params: Params, commit: str | None = None) -> list[TrackedRun]:
    """What MLflow shall show of each chain, in the order given.

    Args:
        results: finished chains.
        params: the settings they were made with.
        commit: git commit to be shown with runs that are published for the first time.
    """
    return [_tracked_run(result, params, commit) for result in results]


def _tracked_run(result: ChainResult, params: Params, commit: str | None) -> TrackedRun:
    chain = result.chain
    return TrackedRun(
        name=_run_name(chain, params),
        key=chain.key,
        params=_settings(result, params),
        tags=_tags(result, commit),
        description=_description(result),
        curves=_curves(result),
        finals=_finals(result),
        artifacts=[(chain.metrics / name, "metrics") for name in FILES],
        seconds=float(result.training["seconds"].sum()),
        figures=[
            (path, "figures") for path in sorted(plots_folder(chain.profile, chain.model, chain.root).glob("*.png"))
        ],
    )


def _run_name(chain: Chain, params: Params) -> str:
    """Names only what tells runs apart: `cnn1 k=1`, with profile and seed where there are several."""
    parts = [chain.profile] if len(params.run.profile) > 1 else []
    parts += [chain.model, f"k={chain.k}" if chain.quantized else "fp32"]
    parts += [f"seed={chain.seed}"] if len(params.run.seed) > 1 else []
    return " ".join(parts)


def _settings(result: ChainResult, params: Params) -> dict[str, str | int | float]:
    """Everything the results depend on, and the network's size."""
    chain, ann = result.chain, result.ann
    # The source of the images may be a path on someone's machine; the data set's name and hash say more.
    settings = dict(_flat(result.settings.model_dump(exclude={"data": {"source"}})))
    return {
        **{"profile": chain.profile, "model": chain.model, "k": chain.k, "seed": chain.seed},
        **{"layers": params.models[chain.model].layers, "neurons": ann.neurons, "weights": ann.weights},
        **{"data.name": ann.data.name, "data.sha256": ann.data.sha256},
        **{"arithmetic": ann.made_with.arithmetic, "device": ann.made_with.device},
        **{"processes": ann.made_with.processes, "torch": ann.made_with.torch},
        **settings,
    }


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested sections under dotted names, such as `train.epochs`."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _tags(result: ChainResult, commit: str | None) -> dict[str, str]:
    chain = result.chain
    tags = {
        # As tags too: MLflow groups and filters runs by them in places where it does not offer params.
        **{"profile": chain.profile, "model": chain.model, "k": str(chain.k), "seed": str(chain.seed)},
        "mlflow.runColor": color_of(chain.k),
        # Set here, since MLflow fills these with the user's name and the path of the script.
        **{"mlflow.user": "quantspike", "mlflow.source.name": "stages/publish.py", "mlflow.source.type": "LOCAL"},
    }
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}


def _curves(result: ChainResult) -> dict[str, list[tuple[int, float]]]:
    """Every column of the training and step tables, under `train/`, `finetune/` and `snn/`."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for phase, table in result.training.groupby("phase", sort=False):
        curves |= _columns(table.drop(columns="phase"), str(phase), "epoch")
    if result.steps is not None:
        curves |= _columns(result.steps, "snn", "step")
    return curves


def _columns(table: pd.DataFrame, prefix: str, counter: str) -> dict[str, list[tuple[int, float]]]:
    """One curve for each column that holds anything."""
    measured = {str(name): table[[counter, name]].dropna() for name in table.columns if name != counter}
    return {
        f"{prefix}/{name}": [(int(step), float(value)) for step, value in pairs.itertuples(index=False)]
        for name, pairs in measured.items()
        if len(pairs)
    }


def _finals(result: ChainResult) -> dict[str, float]:
    finals: dict[str, float | None] = {"ann_accuracy": result.ann.accuracy, "macs": result.ann.macs}
    if (snn := result.snn) is not None:
        finals |= {"snn_accuracy": snn.accuracy, "integer_accuracy": snn.integer_accuracy}
        finals |= {"ann_agreement": snn.ann_agreement, "differing_predictions": snn.differing_predictions}
        finals |= {"stable_step": snn.stable_step, "settled_step": snn.settled_step, "unsettled": snn.unsettled}
        finals |= {"positive_spikes": snn.positive_spikes, "negative_spikes": snn.negative_spikes}
        finals |= {"synops": snn.synops}
    return {f"final/{name}": float(value) for name, value in finals.items() if value is not None}


def _description(result: ChainResult) -> str:
    """The result as a small Markdown table, and what it was measured on."""
    ann, snn = result.ann, result.snn
    rows = [("accuracy of the ANN", f"{ann.accuracy:.2%}")]
    if snn is not None:
        rows += [
            (f"accuracy of the SNN after {snn.steps} steps", f"{snn.accuracy:.2%}"),
            ("accuracy of the integer network", f"{snn.integer_accuracy:.2%}"),
            ("images that SNN and integer network predict differently", f"{snn.differing_predictions:,}"),
            ("stable step (accuracy no longer changes)", str(snn.stable_step)),
            ("settled step (every neuron at rest)", "never" if snn.settled_step is None else str(snn.settled_step)),
            ("synaptic operations (SOPs) per image", f"{snn.synops:,.0f}"),
            ("positive spikes per image", f"{snn.positive_spikes:,.0f}"),
            ("negative spikes per image", f"{snn.negative_spikes:,.0f}"),
        ]
    rows += [("multiply-accumulates of the ANN per image", f"{ann.macs:,}")]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| measure | value |\n| --- | ---: |\n{table}\n\nTested on {ann.images:,} images: {ann.data.name}."


def _head_commit(root: Path) -> str | None:
    """The commit that is checked out, if there is git and a commit."""
    command = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
