"""What every stage script shares: its command line, and how it ends."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantspike.errors import QuantspikeError
from quantspike.params import SEED_LIMIT, Params, Precision, check_precision, load_params
from quantspike.paths import Chain
from quantspike.stopping import Stopped, dvc_has_ended, first_process

_LAUNCHED = "QUANTSPIKE_LAUNCHED"
"""Set in processes that `launch` has started: a command that is not torchrun must not start them for ever."""


def chain_stage(
    main: Callable[[Params, Chain], None],
    description: str | None,
    *,
    shared: bool = False,
    full_precision: bool = False,
) -> None:
    """Runs a stage that works on one chain, named on the command line by profile, model, k and seed.

    Args:
        main: the stage, called with the checked params and the chain.
        description: docstring of the script, shown by --help: what it does, reads and writes.
        shared: whether the stage can be shared by several processes, which `launch` in params.yaml then starts.
        full_precision: whether it only ever works on the chain in full precision, so that no k is named.
    """

    def with_chain(params: Params, root: Path, profile: str, model: str, seed: int, k: Precision = "fp32") -> None:
        if shared:
            launch(params.launch)
        main(params, Chain(profile, model, k, seed, root))

    arguments = ("profile", "model", "seed") if full_precision else ("profile", "model", "k", "seed")
    stage(with_chain, description, *arguments)


def stage(main: Callable[..., None], description: str | None, *arguments: str) -> None:
    """Parses the command line, reads params.yaml, runs `main` and turns user errors into exit status 1.

    Args:
        main: called as main(params, root, **values), where root is the folder of the params file.
        description: docstring of the script, shown by --help.
        arguments: which of profile, model, k and seed the stage wants.
    """
    options = _parser(description, arguments).parse_args()
    values = {name: getattr(options, name) for name in arguments}
    try:
        params = load_params(options.params)
        _check(params, values)
        if "k" in values:
            values["k"] = _precision(values["k"])
        main(params, options.params.parent, **values)
    except Stopped as stop:
        _say(str(stop))
        sys.exit(stop.status)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        _say("interrupted: nothing half-written was left; the same command starts this stage again")
        sys.exit(130)


def launch(command: str) -> None:
    """Starts this script again by a command such as `torchrun --nproc-per-node 4`, in place of this process.

    `python` changes nothing, and neither does any command in a process that it, or torchrun, has started.

    Raises:
        QuantspikeError: there is no such command.
        Stopped: the `dvc` that started this process has ended; the new processes could not know.
    """
    words = shlex.split(command)
    if words == ["python"] or "TORCHELASTIC_RUN_ID" in os.environ or _LAUNCHED in os.environ:
        return
    if dvc_has_ended():
        raise Stopped("stopped before it began: the dvc that started it has ended", signal.SIGTERM)
    try:
        os.execvpe(words[0], [*words, *sys.argv], os.environ | {_LAUNCHED: "1"})
    except OSError as error:
        raise QuantspikeError(
            f"launch in params.yaml is {command!r}, which cannot be started ({error}): "
            "set it to python, or to torchrun with its options"
        ) from error


def _say(message: str) -> None:
    """Says why work has ended: once, though all processes of torchrun end alike."""
    if first_process():
        print(message, file=sys.stderr)


def _parser(description: str | None, arguments: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (default: %(default)s)")
    known: dict[str, tuple[Callable[[str], Any], str]] = {
        "profile": (str, "protocol, as named under profiles in the params file"),
        "model": (str, "network, as named under models in the params file"),
        "k": (str, "precision of the activations: fp32, or k for steps of 2^-k"),
        "seed": (int, "seed of initial weights, shuffling and augmentation"),
    }
    for name in arguments:
        kind, text = known[name]
        parser.add_argument(f"--{name}", type=kind, required=True, help=text)
    return parser


def _check(params: Params, values: dict[str, Any]) -> None:
    """Names given on the command line must be defined, whether or not they are in the grid."""
    for name, known in (("profile", params.profiles), ("model", params.models)):
        if name in values and values[name] not in known:
            raise QuantspikeError(f"--{name} {values[name]} is not defined; {name}s has {', '.join(known)}")
    if not 0 <= values.get("seed", 0) < SEED_LIMIT:
        raise QuantspikeError(f"--seed must be 0 or more and below 2^32, found {values['seed']}")
    if "profile" in values and "model" in values:
        params.architecture(values["profile"], values["model"])


def _precision(text: str) -> Precision:
    try:
        value: int | str = int(text)
    except ValueError:
        value = text
    try:
        return check_precision(value)
    except ValueError as error:
        raise QuantspikeError(f"--k: {error}") from error
