"""Results of finished chains as runs in MLflow: what is shown of each, under which name and colour."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import yaml

from quantspike import tracking
from quantspike.commits import head_commit
from quantspike.labels import run_name, run_settings, run_tags
from quantspike.params import Params
from quantspike.paths import plots_folder
from quantspike.results import ChainResult, result_files
from quantspike.tracking import TrackedData, TrackedModel, TrackedRun


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
        runs = tracked_runs(results, params, root, commit=head_commit(root))
        views = tracking.view_tags((result.chain.profile, result.chain.model) for result in results)
        report = tracking.publish(runs, uri=uri, tags=views)
    except tracking.TrackingError as error:
        print(
            f"warning: {error}. Nothing is lost, `make publish` delivers the runs later",
            file=sys.stderr,
        )
        return
    print(f"MLflow: {report} in {tracking.shown_uri(uri)}")
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr)


def tracked_runs(
    results: Sequence[ChainResult], params: Params, root: Path, commit: str | None = None
) -> list[TrackedRun]:
    """What MLflow shall show of each chain, in the order given.

    Args:
        results: finished chains.
        params: the settings they were made with.
        root: the project's folder.
        commit: git commit to be shown with runs that are published for the first time.
    """
    hashes = _dvc_hashes(root)
    return [_tracked_run(result, params, root, commit, hashes) for result in results]


def _tracked_run(
    result: ChainResult, params: Params, root: Path, commit: str | None, hashes: Mapping[str, str]
) -> TrackedRun:
    chain, ann = result.chain, result.ann
    extras = [(path, "figures") for path in sorted(plots_folder(chain.profile, chain.model, root).glob("*.png"))]
    extras += [(root / "metrics" / f"summary.{kind}", "summary") for kind in ("csv", "md", "tex")]
    if _may_be_shown(params):
        extras += [(root / "params.yaml", "")]
    extras += [(chain.integer_network, "network")]
    return TrackedRun(
        name=run_name(chain, params),
        key=chain.key,
        params=_settings(result, params),
        tags=run_tags(chain, params),
        commit=commit,
        description=_description(result, hashes),
        curves=_curves(result),
        finals=_finals(result),
        artifacts=[(path, "metrics") for path in result_files(chain, result.settings)],
        seconds=float(result.training["seconds"].sum()),
        extras=[(path, folder) for path, folder in extras if path.is_file()],
        data=TrackedData(
            ann.data.name, ann.data.sha256, {"training": ann.data.train_images, "test": ann.data.test_images}
        ),
        model=_model(result, params),
    )


def _may_be_shown(params: Params) -> bool:
    """Whether params.yaml names no path outside the project, which would tell of somebody's machine."""
    return all(_lies_inside(source) for profile in params.profiles.values() for source in profile.data.source)


def _lies_inside(source: str) -> bool:
    """Whether a path cannot leave the project's folder, on any system: addresses and variables may."""
    parts = PureWindowsPath(source).parts  # separated by either slash
    return not (":" in source or source.startswith(("/", "\\", "~", "$")) or ".." in parts)


def _model(result: ChainResult, params: Params) -> TrackedModel | None:
    """The trained network, if its file and the images are at hand: DVC may not have fetched them."""
    chain = result.chain
    weights = chain.data / "finetune.safetensors"
    if not weights.is_file() or not chain.dataset.is_file():
        return None

    def load() -> tuple[Any, Any]:
        # torch, which publishing does not need otherwise
        from quantspike.checkpoints import load_checkpoint
        from quantspike.data import load_dataset
        from quantspike.serving import ImageClassifier

        dataset = load_dataset(chain.dataset)
        architecture = params.architecture(chain.profile, chain.model, dataset.channels, dataset.classes)
        network = load_checkpoint(weights, architecture, chain.k).network
        return ImageClassifier(network), np.zeros_like(dataset.test_images[:2])

    try:
        digest = _sha256(weights)
    except OSError as error:
        print(f"warning: the network of {chain.key} cannot be read: {error}", file=sys.stderr)
        return None
    return TrackedModel(
        name=f"quantspike-{chain.model}",
        alias=f"{chain.profile}-{'k' if chain.quantized else ''}{chain.k}",
        accuracy=result.ann.accuracy,
        digest=digest,
        load=load,
    )


def _settings(result: ChainResult, params: Params) -> dict[str, str | int | float]:
    """Everything the results depend on, and the network's size."""
    ann = result.ann
    return {
        **run_settings(result.chain, params),
        **{"neurons": ann.neurons, "weights": ann.weights},
        **{"data.name": ann.data.name, "data.sha256": ann.data.sha256},
        **{"arithmetic": ann.made_with.arithmetic, "device": ann.made_with.device},
        **{"processes": ann.made_with.processes, "torch": ann.made_with.torch},
    }


def _curves(result: ChainResult) -> dict[str, list[tuple[int, float]]]:
    """Every column of the training and step tables, under `pretrain/`, `train/`, `finetune/` and `snn/`."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for phase, table in result.training.groupby("phase", sort=False):
        curves |= _columns(table.drop(columns="phase"), str(phase), "epoch")
    if result.steps is not None:
        curves |= _columns(result.steps, "snn", "step")
    if result.layers is not None:
        last = result.layers[result.layers["step"] == result.layers["step"].max()]
        spikes = (last["positive_spikes"] + last["negative_spikes"]) / last["neurons"]
        table = last[["layer", "synops", "settled"]].assign(spikes_per_neuron=spikes)
        curves |= _columns(table, "layers", "layer")
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
    return {f"final/{name}": _readable(value) for name, value in finals.items() if value is not None}


def _readable(value: float) -> float:
    """Rounded, since MLflow's tables show every digit: shares to six places, counts per image to one."""
    return round(float(value), 6 if abs(value) <= 1 else 1)


def _description(result: ChainResult, hashes: Mapping[str, str]) -> str:
    """The result as a small Markdown table, what it was measured on, and the hashes of what it came from."""
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
    text = f"| measure | value |\n| --- | ---: |\n{table}\n\nTested on {ann.images:,} images: {ann.data.name}."
    chain = result.chain
    files = (
        ("data", chain.dataset),
        ("weights", chain.data / "finetune.safetensors"),
        ("integer network", chain.integer_network.parent),
    )
    known = [(name, hashes[key]) for name, path in files if (key := path.relative_to(chain.root).as_posix()) in hashes]
    return text + "".join(f"\n\nDVC hash of the {name}: `{digest}`" for name, digest in known)


def _dvc_hashes(root: Path) -> dict[str, str]:
    """MD5 of the outputs in dvc.lock, by path; none where there is no such file."""
    try:
        content = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
        outs = [out for stage in content["stages"].values() for out in stage.get("outs", [])]
        return {out["path"]: out["md5"] for out in outs if "md5" in out}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
