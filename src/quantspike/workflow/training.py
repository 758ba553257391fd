"""Training as the stages `baseline`, `train` and `finetune` run it: from where it stands to a network on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from quantspike.conversion.convert import convert
from quantspike.conversion.integer import class_scores
from quantspike.data.dataset import Dataset, load_dataset
from quantspike.distributed import process_group, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import absent, file_sha256, write_csv, write_json
from quantspike.networks.architecture import architecture_of
from quantspike.networks.cnn import new_network, with_precision
from quantspike.params import Phase, Setting, TrainingStage
from quantspike.paths import Run
from quantspike.training.checkpoints import (
    Checkpoint,
    ResumeStore,
    load_checkpoint,
    load_network,
    resume_optimizer,
    save_checkpoint,
)
from quantspike.training.evaluation import evaluation_report, predict, save_scores, splits
from quantspike.training.loop import Callback, Epoch, Settings, Training, use_bf16
from quantspike.training.optimizer import Optimizer
from quantspike.workflow.callbacks import Progress, SaveState, live_tracking

CODE = ("data", "networks", "training")
"""Packages whose code can change a trained network; this file can too. dvc.yaml lists the same."""

_THEN = ", then "  # between the devices of a network that was trained on several


def train_stage(run: Run, device: str, stage: TrainingStage) -> None:
    """Train the network of a stage, from the latest saved state if there is one, and write it with its curve.

    Under torchrun the processes share every batch, and the first one writes.

    Args:
        run: the run, a baseline for the stage `baseline`.
        device: as in params.yaml.
        stage: `baseline`, `train` or `finetune`.

    Raises:
        QuantspikeError: an input is absent, damaged or was trained with different settings; a loss or a weight
            became NaN or infinite; or a file cannot be written.
    """
    with process_group() as group:
        own_device = group.own_device(resolve_device(device))
        dataset = load_dataset(run.dataset)
        start, kind = _load_start(run, stage, dataset), run.settings.recipe.optimizer
        if start is None:
            architecture = architecture_of(run, dataset.channels, dataset.classes)
            network = new_network(architecture, run.k, run.seed, run.settings.recipe.clip).to(own_device)
            optimizer = Optimizer(network, kind)
        else:
            network = with_precision(start.network, run.k, _weight_bits(run, stage)).to(own_device)
            optimizer = resume_optimizer(start, network, kind)
        images, test = splits(dataset, own_device)
        phases = [_settings(run, index, phase, own_device) for index, phase in _phases(run, stage)]
        # All before the first phase: code and images may be edited while it trains.
        stores = [resume_store(run, stage, settings.phase, settings.bf16) for settings in phases]
        epochs: list[Epoch] = []
        devices = [] if start is None else start.provenance["device"].split(_THEN)
        for settings, store in zip(phases, stores, strict=True):
            training = Training(network, optimizer, settings, images, test, group)
            epochs += run_phase(training, store, run, stage)
            devices += training.devices
        if group.rank == 0:
            bf16 = training.settings.bf16 or (start is not None and start.provenance["arithmetic"] == "bf16")
            provenance = {
                "settings": _depends_on(run, stage, dataset),
                "arithmetic": "bf16" if bf16 else "fp32",
                "device": _THEN.join(name for name, _ in groupby(devices)),
                "processes": group.size,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            save_checkpoint(run.checkpoint(stage), network, optimizer, provenance)
            write_epochs(run.metrics / f"{stage}.csv", epochs)
            for store in stores:
                store.keep_last()


def run_phase(training: Training, store: ResumeStore, run: Run, stage: TrainingStage) -> list[Epoch]:
    """Train one phase to its end, from the latest saved state if there is one.

    Raises:
        KeyboardInterrupt: the work was interrupted; the state after the last complete epoch is kept.
        QuantspikeError: a loss or a weight became NaN or infinite.
    """
    first = training.group.rank == 0
    state = training.group.broadcast_object(store.load() if first else None)
    if state is not None:
        training.restore(*state)
        if first:
            print(f"resumes after epoch {len(training.records)} of {training.settings.epochs}", flush=True)
    progress = Progress(training)
    callbacks: list[Callback] = [SaveState(store), progress]  # an epoch that is printed is saved
    try:
        with live_tracking(run, stage, training, resumed=state is not None) as live:
            return training.run([*callbacks, *live])
    except KeyboardInterrupt:
        if first:
            print(
                f"stopped in epoch {training.epoch}: the same command resumes after the last saved one", file=sys.stderr
            )
        raise
    finally:
        progress.close()


def evaluate_run(run: Run, device: str, stage: str) -> dict[str, Any]:
    """Measure the trained network of a run on the test images; write scores and `<stage>.json`, return the latter.

    Raises:
        QuantspikeError: the network or the images are absent or damaged, or the device is absent.
    """
    dataset = load_dataset(run.dataset)
    checkpoint = load_network(run, dataset)
    network, images = checkpoint.network, torch.from_numpy(dataset.test_images)
    own_device = resolve_device(device)  # an absent GPU is an error of every stage
    if network.weight_bits is None:
        scores = predict(network.to(own_device), images.to(own_device), run.settings.data.crop).cpu()
    else:
        # Trained as integers, so it is measured as integers, where nothing is rounded.
        scores = class_scores(convert(network, network.weight_bits), images)
    report = evaluation_report(network, dataset, scores)
    if run.k != "fp32":
        save_scores(run.scores, scores)
    report |= {"provenance": checkpoint.provenance}
    write_json(run.metrics / f"{stage}.json", report)
    return report


def resume_store(run: Run, stage: TrainingStage, index: int, bf16: bool) -> ResumeStore:
    """Return where a phase keeps its states, under a hash of the params, code, data and arithmetic that it depends on.

    Raises:
        QuantspikeError: an input does not exist.
    """
    start = _start_file(run, stage)
    inputs = [run.dataset] if start is None else [run.dataset, start]
    for path in inputs:
        if not path.is_file():
            raise absent(path)
    package = Path(__file__).parents[1]
    code = [Path(__file__), *(path for name in CODE for path in sorted((package / name).rglob("*.py")))]
    settings: dict[str, Any] = run.settings.training_settings(stage)
    settings |= {"seed": run.seed, "layers": run.layers, "k": run.k, "bf16": bf16}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update("".join(file_sha256(path) for path in [*code, *inputs]).encode())
    return ResumeStore(run.resume, f"{stage}-{index}", digest.hexdigest()[:16])


def write_epochs(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write one row per epoch, counted on over the phases; columns as the fields of `Epoch`."""
    columns = {field.name: [getattr(epoch, field.name) for epoch in epochs] for field in fields(Epoch)}
    rounded = {name: [f"{v:.6g}" if isinstance(v, float) else v for v in values] for name, values in columns.items()}
    write_csv(path, rounded | {"epoch": list(range(1, len(epochs) + 1))})


def _phases(run: Run, stage: TrainingStage) -> list[tuple[int, Phase]]:
    """Return the phases of a stage, each with the number of phases the network was trained for before."""
    settings = run.settings
    if stage == "baseline":
        return list(enumerate(settings.baseline))
    before = len(settings.baseline) if settings.train.start == "baseline" else 0
    return [(before, settings.train)] if stage == "train" else [(before + 1, settings.finetune)]


def _settings(run: Run, index: int, phase: Phase, device: torch.device) -> Settings:
    return Settings(
        phase=index,
        epochs=phase.epochs,
        learning_rate=phase.learning_rate,
        seed=run.seed,
        crop=run.settings.data.crop,
        recipe=run.settings.recipe,
        activation_penalty=run.settings.train.activation_penalty,
        bf16=use_bf16(run.settings.recipe.arithmetic, device),
    )


def _weight_bits(run: Run, stage: TrainingStage) -> int | None:
    """Return the width of the weights that a stage trains for, None if it is not integer-aware."""
    aware = stage == "finetune" and run.settings.finetune.integer_aware
    return run.settings.convert.weight_bits if aware else None


def _start_file(run: Run, stage: TrainingStage) -> Path | None:
    """Return the network that a stage starts from, None for initial weights."""
    if stage == "finetune":
        return run.checkpoint("train")
    if stage == "train" and run.settings.train.start == "baseline":
        return run.baseline.checkpoint("baseline")
    return None


def _load_start(run: Run, stage: TrainingStage, dataset: Dataset) -> Checkpoint | None:
    """Read the network that a stage starts from and check that it was trained with today's settings."""
    path = _start_file(run, stage)
    if path is None:
        return None
    architecture = architecture_of(run, dataset.channels, dataset.classes)
    before: TrainingStage = "train" if stage == "finetune" else "baseline"
    checkpoint = load_checkpoint(path, architecture, run.k if stage == "finetune" else "fp32")
    expected, found = _depends_on(run, before, dataset), checkpoint.provenance.get("settings", {})
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise QuantspikeError(
                f"{path} was trained with different settings: expected {name} = {expected.get(name)}, "
                f"found {found.get(name)}; run dvc repro"
            )
    return checkpoint


def _depends_on(run: Run, stage: TrainingStage, dataset: Dataset) -> dict[str, Setting]:
    """Return the settings that a network depends on after a stage, and the hash of the images."""
    sha256: str = dataset.fingerprint["sha256"]
    return run.settings.training_settings(stage) | {"seed": run.seed, "data.sha256": sha256}
