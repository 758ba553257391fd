"""What every stage script calls: command line, the run it works on, exit status."""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from quantspike.errors import QuantspikeError, out_of_memory
from quantspike.files import delete_temporary_files, locked, reason
from quantspike.networks.architecture import architecture_of, check_layer_delay
from quantspike.params import SEED_LIMIT, Params, Precision, check_k, load_params
from quantspike.paths import Run, find_run, grid_runs

_BATCH_SIZES = {"simulate": "simulate.batch_size"} | dict.fromkeys(
    ("baseline", "train", "finetune"), "recipe.batch_size"
)


def run_stage(
    main: Callable[[Run, str], None], description: str | None, *, shared: bool = False, baseline: bool = False
) -> None:
    """Run a stage that works on one run, named on the command line by profile, model, k and seed.

    The run's lock keeps a second writer out until the stage ends.

    Args:
        main: called with the run and `device` of params.yaml.
        description: docstring of the script, shown by --help: what it does, reads and writes.
        shared: whether several processes can share the stage, which `launch` in params.yaml then starts.
        baseline: whether the stage works on full-precision runs, so that no k is named.
    """

    def with_run(params: Params, root: Path, profile: str, model: str, seed: int, k: Precision = "fp32") -> None:
        if shared:
            launch(params.launch)
        run = find_run(params, profile, model, k, seed, root)
        with _sole_writer(run):
            main(run, params.device)

    arguments = ("profile", "model", "seed") if baseline else ("profile", "model", "k", "seed")
    stage(with_run, description, *arguments)


def stage(main: Callable[..., None], description: str | None, *arguments: str) -> None:
    """Parse the command line, read params.yaml, run `main` and turn user errors into exit status 1.

    What it prints is dropped once nobody can read it: showing never decides whether work is done.

    Args:
        main: called as main(params, root, **values), where root is the folder of the params file.
        description: docstring of the script, shown by --help.
        arguments: which of profile, model, k and seed the stage takes.
    """
    end_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    with unread_output_dropped():
        options = _parser(description, arguments).parse_args()
        values = {name: getattr(options, name) for name in arguments}
        try:
            params = load_checked_params(options.params)
            _check(params, values)
            main(params, options.params.parent, **values)
        except QuantspikeError as error:
            sys.exit(f"error: {error}")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            setting = _BATCH_SIZES.get(Path(sys.argv[0]).stem)
            lower = f"lower {setting} of the profile in params.yaml, or " if setting else ""
            sys.exit(f"error: not enough memory ({reason(error)}): {lower}run it where more is free")
        except KeyboardInterrupt as interrupt:
            if first_process():
                told = "interrupted: no half-written file is left; the same command runs this stage again"
                print(told, file=sys.stderr)
            sys.exit(128 + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT))


@contextmanager
def unread_output_dropped() -> Iterator[list[OSError]]:
    """Print what can be printed and drop the rest: to a reader that has gone (`... | head`), a full disk or nowhere.

    Characters that the locale lacks become escapes. Yield a list that the errors of printing are added to.
    """
    streams, errors = [], list[OSError]()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by `>&-`: the next file that is opened would take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it flushes
                stream.reconfigure(errors="backslashreplace")
        streams.append(cast(TextIO, _Unbreakable(stream, errors)))
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield errors
        finally:
            for stream in streams:
                stream.flush()


class _Unbreakable:
    """A stream whose writing never fails, and a list of errors."""

    def __init__(self, stream: TextIO, errors: list[OSError]) -> None:
        self._stream, self._errors = stream, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except BlockingIOError:  # a terminal that cannot take more at the moment
            pass
        except OSError as error:
            self._errors.append(error)
            # What is in the buffer would fail again when Python exits.
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def load_checked_params(path: Path) -> Params:
    """Read a params file and check that every network of the grid fits its images, its clip and its layer delays.

    Raises:
        QuantspikeError: see `load_params`, `grid_runs`, `architecture_of` and `check_layer_delay`.
    """
    params = load_params(path)
    try:
        for run in grid_runs(params):
            check_layer_delay(architecture_of(run), run.settings.simulate, f"profiles.{run.profile}.simulate")
    except QuantspikeError as error:
        raise QuantspikeError(f"{path} holds a value that is not allowed:\n  {error}") from error
    return params


def launch(command: str) -> None:
    """Start this script again by a command such as `torchrun --nproc-per-node 4`, in place of this process.

    `python` changes nothing, and neither does any command in a process that torchrun has started.

    Raises:
        QuantspikeError: the command cannot be started.
    """
    words = shlex.split(command)
    if words == ["python"] or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    try:
        os.execvp(words[0], [*words, *sys.argv])
    except (OSError, ValueError) as error:  # ValueError: it holds a NUL
        raise QuantspikeError(
            f"launch in params.yaml is {command!r}, which cannot be started ({error}): "
            "set it to python, or to torchrun with its options"
        ) from error


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when a `dvc` that started this process dies, so that no orphan stays; Linux only."""
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
    # A stage is in DVC's process group; if DVC is dead already, the process that adopted the stage is in another one.
    # torchrun gives each process a group, and ends them all when it is sent SIGTERM.
    if "TORCHELASTIC_RUN_ID" not in os.environ and os.getpgid(os.getppid()) != os.getpgrp():
        sys.exit(128 + signal.SIGTERM)


def first_process() -> bool:
    """Return whether this is the only process, or the first of those that torchrun started: the one that writes."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends work as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def _sole_writer(run: Run) -> Iterator[None]:
    """Hold the lock of a run, and clear what killed processes left half-written."""
    if not first_process():
        yield
        return
    busy = f"another process is working on {run.key}: wait for it, or stop it first (it holds {run.resume / 'lock'})"
    with locked(run.resume, busy):
        for folder in (run.data, run.metrics):
            delete_temporary_files(folder)
        yield


def _parser(description: str | None, arguments: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (default: %(default)s)")
    known: dict[str, tuple[Callable[[str], Any], str]] = {
        "profile": (str, "protocol, as named under profiles in the params file"),
        "model": (str, "network, as named under models in the params file"),
        "k": (_k, "precision: activations in steps of 2^-k"),
        "seed": (int, "seed of initial weights, shuffling and augmentation"),
    }
    for name in arguments:
        kind, text = known[name]
        parser.add_argument(f"--{name}", type=kind, required=True, help=text)
    return parser


def _k(text: str) -> int:
    """Parse k; argparse shows the message of an error."""
    try:
        return check_k(int(text) if text.lstrip("-").isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _check(params: Params, values: dict[str, Any]) -> None:
    """Check that names on the command line are defined, whether or not they are in the grid."""
    for name, known in (("profile", params.profiles), ("model", params.models)):
        if name in values and values[name] not in known:
            raise QuantspikeError(f"--{name} {values[name]} is not defined; {name}s has {', '.join(known)}")
    if not 0 <= values.get("seed", 0) < SEED_LIMIT:
        raise QuantspikeError(f"--seed must be 0 or more and below 2^32, found {values['seed']}")
    if "profile" in values and "model" in values:
        architecture_of(find_run(params, values["profile"], values["model"], values.get("k", "fp32"), 0, Path()))
