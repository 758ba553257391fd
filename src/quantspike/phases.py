"""A phase of training as a stage runs it: resumed, shown, saved, and stopped when that is asked for."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from quantspike import tracking
from quantspike.checkpoints import Checkpoint
from quantspike.devices import multiplies_bf16
from quantspike.display import Display
from quantspike.distributed import Group, processes
from quantspike.errors import QuantspikeError
from quantspike.files import clear_leftovers
from quantspike.labels import run_name, run_settings, run_tags
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.resume import ResumeStore, fingerprint, sole_writer
from quantspike.stopping import Stopped, StopRequest, stop_requests
from quantspike.tracking import LiveRun
from quantspike.training import FINETUNE, PRETRAIN, TRAIN, Epoch, NotFiniteError, Settings, Training, phase_settings

CODE = (
    "adam.py",
    "architecture.py",
    "augmentation.py",
    "checkpoints.py",
    "distributed.py",
    "measuring.py",
    "networks.py",
    "quantization.py",
    "recipes.py",
    "training.py",
)
"""What of the package can change a training; the same files are dependencies in dvc.yaml."""

_NAMES = {PRETRAIN: "pretrain", TRAIN: "train", FINETUNE: "finetune"}
_GO_ON, _SAVE = 0, 1
_SAVING_SHARE = 0.1
"""Of the time, at most, for saving: where epochs are shorter than that allows, not each of them is saved."""


def settings_of(params: Params, chain: Chain, phase: int, device: torch.device) -> Settings:
    """What params.yaml and the hardware say of a phase."""
    profile = params.profiles[chain.profile]
    autocast = {"auto": multiplies_bf16(device), "bf16": True, "off": False}[profile.train.autocast]
    return phase_settings(profile, phase, chain.seed, autocast=autocast, compile=params.compile)


def made_with(
    params: Params, chain: Chain, training: Training, store: ResumeStore, before: Checkpoint | None = None
) -> dict[str, Any]:
    """Settings and machine of a training, to be kept with its network, and the hash that its states bear.

    Args:
        params: all of params.yaml.
        chain: the chain that was trained.
        training: the phase that is over.
        store: of its states.
        before: the network that the phase began with; bf16 and devices of its phases count too.
    """
    device = training.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()["cpu_name"]
    earlier = before.made_with if before is not None else {}
    devices = str(earlier.get("device", name))
    bf16 = training.settings.autocast or earlier.get("arithmetic") == "bf16"
    return {
        "settings": _dependencies(params, chain, training.settings.phase),
        "arithmetic": "bf16" if bf16 else "fp32",
        "device": devices if devices.split(", then ")[-1] == name else f"{devices}, then {name}",
        "processes": training.group.size,
        "torch": torch.__version__,
        "fingerprint": store.fingerprint,
    }


def shown(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What results tell of a training: all but the hash, which a mere comment in the code changes."""
    return {name: value for name, value in made_with.items() if name != "fingerprint"}


def resume_store(params: Params, chain: Chain, phase: int, script: Path, inputs: Sequence[Path]) -> ResumeStore:
    """Where a phase keeps its states, under a hash of the params, code and data that it depends on.

    Args:
        params: all of params.yaml.
        chain: the chain that is trained.
        phase: PRETRAIN, TRAIN or FINETUNE.
        script: the stage, which is code too.
        inputs: files that the stage reads.

    Raises:
        QuantspikeError: an input is not there.
    """
    settings = _dependencies(params, chain, phase) | {"layers": params.models[chain.model].layers, "k": chain.k}
    for path in inputs:
        if not path.is_file():
            raise QuantspikeError(f"{path} is not there: run the stage that writes it (dvc repro)")
    code = [script, *(Path(__file__).with_name(name) for name in CODE)]
    return ResumeStore(chain.resume, _NAMES[phase], fingerprint(settings, [*code, *inputs]))


def check_pretrained(params: Params, chain: Chain, start: Checkpoint) -> None:
    """Makes sure that a pre-trained network was trained as params.yaml says now.

    Raises:
        QuantspikeError: it was not.
    """
    then = start.made_with.get("settings", {})
    for name, now in _dependencies(params, chain.full_precision, PRETRAIN).items():
        if then.get(name) != now:
            raise QuantspikeError(
                f"{start.path} is of other settings ({name} is {now}, it had {then.get(name)}): run dvc repro"
            )


def discard_states(chain: Chain, phase: int, checkpoint: Checkpoint) -> None:
    """Deletes the states that led to a network.

    That is for a later stage to do: until one runs, `dvc` may die before it has noted the network, and would then
    delete it and have it trained again, which the last state makes a matter of seconds.
    """
    if found := checkpoint.made_with.get("fingerprint"):
        ResumeStore(chain.resume, _NAMES[phase], str(found)).discard()


@contextmanager
def sole_training(chain: Chain) -> Iterator[Group]:
    """Joins the processes that torchrun started, if it did, and makes sure that no others train the chain.

    Raises:
        QuantspikeError: others do.
    """
    with processes() as group, sole_writer(chain.resume) if group.rank == 0 else nullcontext():
        if group.rank == 0:
            clear_leftovers(chain.data)
            clear_leftovers(chain.metrics)
        yield group


def run_phase(
    training: Training,
    store: ResumeStore,
    checkpoint_minutes: float,
    watch: Callable[[bool], LiveRun | None] = lambda resumed: None,
) -> list[Epoch]:
    """Trains to the end, from the newest state there is.

    Args:
        training: before its first step.
        store: only the first process uses it.
        checkpoint_minutes: longest time between two states.
        watch: gives who sends the progress to MLflow, if anybody does; told whether the phase goes on from a state.
            Only the first process calls it.

    Raises:
        Stopped: by a signal, after the state was saved.
        QuantspikeError: a loss or a weight is no longer finite.
    """
    first = training.group.rank == 0
    found = training.group.from_first(store.load() if first else None)
    if found is not None:
        training.restore(*found)
    if first:
        _tell_where(training, store, resumed=found is not None)
    live = watch(found is not None) if first else None
    with stop_requests() as request:
        keeper = _Keeper(training, store, request, checkpoint_minutes * 60, live)
        try:
            epochs = training.run(keeper)
        except NotFiniteError as error:
            keeper.close("FAILED")
            raise QuantspikeError(f"{error}; {keeper.kept}") from error
        except BaseException as error:
            keeper.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
            raise
        keeper.close("FINISHED")
    return epochs


def watcher(params: Params, chain: Chain, phase: int) -> Callable[[bool], LiveRun | None]:
    """Who sends the progress of a phase to MLflow, as `run_phase` wants it: nobody where tracking is off."""

    def watch(resumed: bool) -> LiveRun | None:
        if not tracking.enabled() or importlib.util.find_spec("mlflow") is None:
            return None
        if phase == PRETRAIN and chain.k not in params.run.k:
            return None  # no chain of the grid would ever take the run over
        profile = params.profiles[chain.profile]
        before = {PRETRAIN: 0, TRAIN: profile.pretrain.epochs}.get(
            phase, profile.pretrain.epochs + profile.train.epochs
        )
        # What is pretrained shows in the run of the chain in full precision, which goes on there.
        first = phase == PRETRAIN or (phase == TRAIN and (chain.quantized or not profile.pretrain.epochs))
        return LiveRun(
            tracking.tracking_uri(chain.root),
            chain.key,
            run_name(chain, params),
            run_tags(chain, params),
            run_settings(chain, params),
            fresh=first and not resumed,
            epochs_before=before,
            tell=lambda text: tqdm.write(text, file=sys.stderr),
        )

    return watch


class _Keeper:
    """Shows, saves and stops a training, as its observer."""

    def __init__(
        self,
        training: Training,
        store: ResumeStore,
        request: StopRequest,
        longest: float,
        live: LiveRun | None,
    ) -> None:
        self.display = Display(training)
        self._live = live
        self._store, self._request, self._longest = store, request, longest
        self._saved_at, self._saving = time.perf_counter(), 0.0

    @property
    def kept(self) -> str:
        """Which state a next run would go on from."""
        states = self._store.states()
        return f"the last good state is kept in {states[-1]}" if states else "no state was saved before"

    def close(self, status: str) -> None:
        """Takes the bar away and ends the run in MLflow."""
        self.display.close()
        if self._live is not None:
            self._live.close(status)

    def stepped(self, training: Training, images: int) -> None:
        self.display.stepped(training, images)
        if self._live is not None and self._live.due():
            step = training.steps * (self._live.epochs_before + training.epoch - 1) + training.step
            speed = self.display.images_per_second
            values = {"loss": training.loss, "accuracy": training.accuracy, "images_per_second": speed}
            self._live.log({f"live/{name}": value for name, value in values.items()}, step)
        self._act(training, due=time.perf_counter() - self._saved_at >= self._longest)

    def measured(self, training: Training, epoch: Epoch) -> None:
        self.display.measured(training, epoch)
        if self._live is not None:
            values = {name: value for name, value in asdict(epoch).items() if name != "epoch" and value is not None}
            name = _NAMES[training.settings.phase]
            self._live.log(
                {f"{name}/{measure}": value for measure, value in values.items()},
                self._live.epochs_before + epoch.epoch,
            )
        long_enough = time.perf_counter() - self._saved_at >= self._saving / _SAVING_SHARE
        self._act(training, due=long_enough or training.finished)

    def _act(self, training: Training, due: bool) -> None:
        """Saves or stops if any process wants to; all of them take part in both, at the same step."""
        wanted = training.group.maximum(self._request.signal or (_SAVE if due else _GO_ON))
        if wanted == _GO_ON:
            return
        training.check_finite()
        problem = self._save(training)
        if wanted == _SAVE:
            if problem:
                tqdm.write(f"warning: {problem}; training goes on without it", file=sys.stderr)
            return
        name = signal.Signals(wanted).name
        state = f"{problem}; {self.kept}" if problem else f"the state is saved ({self._store.folder})"
        again = "goes on from there" if self._store.states() else "begins anew"
        raise Stopped(f"stopped by {name} {_place(training)}: {state}; the same command {again}", wanted)

    def _save(self, training: Training) -> str | None:
        """Saves the state; says what went wrong."""
        start = time.perf_counter()
        tensors, progress = training.state()
        problem = None
        if training.group.rank == 0:
            try:
                self._store.save(tensors, progress, training.epoch, training.step)
            except QuantspikeError as error:
                problem = str(error)
        self._saved_at = time.perf_counter()
        self._saving = self._saved_at - start
        return training.group.from_first(problem)


def _place(training: Training) -> str:
    """Where a training stands."""
    if training.finished:
        return "after the last epoch"
    return f"in epoch {training.epoch}, after step {training.step} of {training.steps}"


def _dependencies(params: Params, chain: Chain, phase: int) -> dict[str, str | int | float | bool]:
    """Settings that the network depends on after a phase."""
    later = {
        PRETRAIN: ("finetune.", "train.epochs", "train.learning_rate", "train.schedule"),
        TRAIN: ("finetune.",),
        FINETUNE: (),
    }
    settings = params.profiles[chain.profile].training_settings
    return {name: value for name, value in settings.items() if not name.startswith(later[phase])} | {"seed": chain.seed}


def _tell_where(training: Training, store: ResumeStore, resumed: bool) -> None:
    if resumed:
        print(f"goes on {_place(training)}", flush=True)
    if others := store.others():
        print(
            f"note: {len(others)} states in {store.folder} belong to other params, code or data; they are not used, "
            "and can be deleted if you are not going back to those",
            file=sys.stderr,
        )
