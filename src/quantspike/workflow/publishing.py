"""Turn runs and their results into what MLflow shows: names, tags, settings, curves and networks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from quantspike.data.dataset import load_dataset
from quantspike.errors import QuantspikeError
from quantspike.params import Setting
from quantspike.paths import Run, plots_folder, project_root
from quantspike.reporting.palette import color_of
from quantspike.reporting.results import RunResult, SpikingResult, result_files
from quantspike.tracking.live import LiveRun
from quantspike.tracking.models import ImageClassifier, TrackedModel
from quantspike.tracking.publish import TrackedRun, publish
from quantspike.tracking.store import enabled, shown_uri, tracking_uri
from quantspike.tracking.view import view_tags
from quantspike.training.checkpoints import load_network

Points = list[tuple[int, float]]
"""A curve: step and value."""


def publish_results(results: Sequence[RunResult], root: Path) -> None:
    """Make MLflow show the results, and print one line about it.

    Trouble with MLflow is a warning, not an error: the files are the results. From the copy of an experiment nothing is
    published: its runs would replace those of the project, which have the same keys.

    Args:
        results: of finished runs.
        root: the project's folder.
    """
    if not enabled():
        print("MLflow: tracking is off (QUANTSPIKE_TRACKING), nothing published")
        return
    if project_root(root) != root:
        name = os.environ.get("DVC_EXP_NAME", "NAME")
        print(f"MLflow: nothing published from a copy of the project: `dvc exp apply {name}`, then `make publish`")
        return
    uri = tracking_uri(root)
    views = view_tags((result.run.profile, result.run.model) for result in results)
    try:
        report = publish([tracked_run(result) for result in results], uri=uri, views=views)
    except QuantspikeError as error:
        print(f"warning: {error}. Nothing is lost: `make publish` delivers the runs later", file=sys.stderr)
        return
    print(f"MLflow: {report} in {shown_uri(uri)}")
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr)


def live_run(run: Run, *, fresh: bool, tell: Callable[[str], None]) -> LiveRun:
    """Return the run in MLflow that a training fills.

    Args:
        run: the run that is trained.
        fresh: whether its training starts anew; otherwise it continues the run that it filled before.
        tell: show one line to the user.
    """
    uri = tracking_uri(run.root)
    return LiveRun(uri, run.key, run_name(run), run_tags(run), run_settings(run), fresh=fresh, tell=tell)


def run_name(run: Run) -> str:
    """Return the name of a run, such as `paper cnn1 k=1`, `paper cnn1 fp32` or `paper cnn1 k=1 seed=2`."""
    precision = "fp32" if run.k == "fp32" else f"k={run.k}"
    return f"{run.profile} {run.model} {precision}" + (f" seed={run.seed}" if run.seed else "")


def run_tags(run: Run) -> dict[str, str]:
    """Return tags by which MLflow groups and filters where it does not offer params, and the colour of k."""
    return {
        **{"profile": run.profile, "model": run.model, "k": str(run.k), "seed": str(run.seed)},
        "mlflow.runColor": color_of(run.k),
        # MLflow would fill these with the user's name and the path of the script.
        **{"mlflow.user": "quantspike", "mlflow.source.name": "quantspike", "mlflow.source.type": "LOCAL"},
    }


def run_settings(run: Run) -> dict[str, Setting]:
    """Return what the results of a run depend on, under dotted names such as `train.epochs`."""
    settings = run.settings
    spiking = {
        "convert.weight_bits": settings.convert.weight_bits,
        "simulate.steps": settings.simulate.steps,
        "simulate.settle_limit": settings.simulate.settle_limit,
        "simulate.layer_delay": settings.simulate.layer_delay[0],
    }
    return {
        **{"profile": run.profile, "model": run.model, "k": run.k, "seed": run.seed, "layers": run.layers},
        **settings.training_settings("baseline" if run.k == "fp32" else "finetune"),
        **({} if run.k == "fp32" else spiking),
    }


def tracked_run(result: RunResult) -> TrackedRun:
    """Return what MLflow shows of the result of a finished run."""
    run, evaluation = result.run, result.evaluation
    data, provenance = evaluation.data, evaluation.provenance
    return TrackedRun(
        name=run_name(run),
        key=run.key,
        params={
            **run_settings(run),
            **{"neurons": evaluation.neurons, "weights": evaluation.weights},
            **{"data.name": data.name, "data.sha256": data.sha256},
            **provenance.model_dump(exclude={"settings"}),
        },
        tags=run_tags(run),
        description=_description(result),
        curves=_curves(result),
        finals=_finals(result),
        files=result_files(run),
        figures=sorted(plots_folder(run.profile, run.model, run.root).glob("*.png")),
        model=_model(result),
    )


def _model(result: RunResult) -> TrackedModel | None:
    """Return the trained network, None if its file or the images have not been fetched."""
    run = result.run
    if not run.network.is_file() or not run.dataset.is_file():
        return None

    def load() -> tuple[nn.Module, Tensor]:
        data = load_dataset(run.dataset)
        images = torch.zeros(2, data.channels, data.image_size, data.image_size, dtype=torch.uint8)
        return ImageClassifier(load_network(run, data).network), images

    precision = "fp32" if run.k == "fp32" else f"k{run.k}"
    files = [path for path in (run.integer_network,) if path.is_file()]
    return TrackedModel(run.model, f"{run.profile}-{precision}", run.seed, load, files)


def _curves(result: RunResult) -> dict[str, Points]:
    """Return every column of the result tables, under `baseline/`, `train/`, `finetune/`, `snn/` and `layers/`."""
    curves: dict[str, Points] = {}
    for phase, table in result.training.groupby("phase", sort=False):
        curves |= _columns(table.drop(columns="phase"), str(phase), "epoch")
    if isinstance(result, SpikingResult):
        curves |= _columns(result.steps, "snn", "step")
        last = result.layers[result.layers["step"] == result.layers["step"].max()]
        spikes = (last["positive_spikes"] + last["negative_spikes"]) / last["neurons"]
        curves |= _columns(last[["layer", "synops", "settled"]].assign(spikes_per_neuron=spikes), "layers", "layer")
    return curves


def _columns(table: pd.DataFrame, prefix: str, counter: str) -> dict[str, Points]:
    """Return one curve for each column that holds values."""
    measured = {str(name): table[[counter, name]].dropna() for name in table.columns if name != counter}
    return {
        f"{prefix}/{name}": [(int(step), float(value)) for step, value in pairs.itertuples(index=False)]
        for name, pairs in measured.items()
        if len(pairs)
    }


def _finals(result: RunResult) -> dict[str, float]:
    finals: dict[str, float | None] = {"ann_accuracy": result.evaluation.accuracy, "macs": result.evaluation.macs}
    if isinstance(result, SpikingResult):
        snn = result.simulation
        finals |= {"snn_accuracy": snn.accuracy, "integer_accuracy": snn.integer_accuracy}
        finals |= {"ann_agreement": snn.ann_agreement, "differing_predictions": snn.differing_predictions}
        finals |= {"stable_step": snn.stable_step, "settled_step": snn.settled_step}
        finals |= {"unsettled_at_T": snn.unsettled_at_T}
        finals |= {"positive_spikes": snn.positive_spikes, "negative_spikes": snn.negative_spikes}
        finals |= {"synops": snn.synops, "least_synops": snn.least_synops}
        for delay, (settled_step, synops) in list(result.cost_by_delay.items())[1:]:
            finals |= {f"settled_step_D{delay}": settled_step, f"synops_D{delay}": synops}
    return {f"final/{name}": _readable(value) for name, value in finals.items() if value is not None}


def _readable(value: float) -> float:
    """Round, since MLflow's tables show every digit: shares to six places, counts per image to one."""
    return round(float(value), 6 if abs(value) <= 1 else 1)


def _description(result: RunResult) -> str:
    """Return the result as a small Markdown table, and what it was measured on."""
    evaluation = result.evaluation
    rows = [("accuracy of the ANN", f"{evaluation.accuracy:.2%}")]
    if isinstance(result, SpikingResult):
        snn = result.simulation
        late = f"none; images not settled after step {snn.steps}: {snn.unsettled_at_T:,}"
        rows += [
            (f"accuracy of the SNN after {snn.steps} steps", f"{snn.accuracy:.2%}"),
            ("accuracy of the integer network", f"{snn.integer_accuracy:.2%}"),
            ("images that SNN and integer network predict differently", f"{snn.differing_predictions:,}"),
            ("stable step (accuracy no longer changes)", str(snn.stable_step or late)),
            ("settled step (every neuron settled)", str(snn.settled_step or late)),
            ("synaptic operations (SOPs) per image", f"{snn.synops:,.0f}"),
            ("positive spikes per image", f"{snn.positive_spikes:,.0f}"),
            ("negative spikes per image", f"{snn.negative_spikes:,.0f}"),
        ]
    rows += [("multiply-accumulates of the ANN per image", f"{evaluation.macs:,}")]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"| measure | value |\n| --- | ---: |\n{table}\n\n"
        f"Tested on {evaluation.images:,} images: {evaluation.data.name}."
    )
