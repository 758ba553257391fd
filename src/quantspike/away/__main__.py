"""Results made on another machine: `python -m quantspike.away run` there, `python -m quantspike.away adopt` here.

run    runs chains of a profile within a time limit, in the order of the options, and packs each that is finished as
       <chain>.tar.gz; the same command goes on where an earlier one ended
adopt  takes packs into the project: what made them must be what lies here; dvc.lock then knows them
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantspike.away.adopting import adopt
from quantspike.away.running import Job, check_code, order, run_chains
from quantspike.errors import QuantspikeError
from quantspike.params import Params, Precision, check_precision, load_params


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    options = _parser().parse_args(arguments)
    try:
        params = load_params(options.params)
        if options.action == "run":
            _run(options, params)
        else:
            adopted = adopt(options.packs, params, options.params, replace=options.replace)
            print(f"adopted: {', '.join(adopted)}; `dvc repro --allow-missing` goes on from there")
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


def _run(options: argparse.Namespace, params: Params) -> None:
    for name, chosen, known in (
        ("profile", [options.profile], params.profiles),
        ("model", options.model, params.models),
    ):
        if unknown := [value for value in chosen if value not in known]:
            raise QuantspikeError(f"--{name} {unknown[0]} is not defined; {name}s has {', '.join(known)}")
    check_code(options.params.parent)
    job = Job(
        params=params,
        params_file=options.params,
        work=options.work,
        out=options.out,
        minutes=options.minutes,
        done=tuple(options.done),
        source=options.source,
        commit=options.commit,
    )
    chains = order(options.profile, options.model, options.k, options.seed, options.work)
    report = run_chains(job, chains, say=lambda line: print(line, flush=True))
    if report.failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quantspike.away",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run chains and pack them")
    run.add_argument("--profile", default="paper", help="protocol in the params file (default: %(default)s)")
    run.add_argument("--model", nargs="+", default=["cnn1", "cnn2"], help="networks, in order (default: %(default)s)")
    run.add_argument(
        "--k", nargs="+", type=_precision, default=[1, "fp32", 0, 2], help="precisions, in order (default: %(default)s)"
    )
    run.add_argument("--seed", nargs="+", type=int, default=[0], help="seeds, in order (default: %(default)s)")
    run.add_argument("--minutes", type=_minutes, default=9.0, help="limit for all of it (default: %(default)s)")
    run.add_argument("--out", type=Path, default=Path("build/packs"), help="folder for packs (default: %(default)s)")
    run.add_argument("--done", nargs="+", type=Path, default=[], help="folders with packs of chains that need not run")
    run.add_argument("--source", type=Path, help="archive of images that data.source of the profile names")
    run.add_argument("--commit", help="of the code, where git cannot tell")
    run.add_argument(
        "--work", type=Path, default=Path("build/away"), help="folder for what the stages write (default: %(default)s)"
    )
    adopting = actions.add_parser("adopt", help="take packs into the project")
    adopting.add_argument("packs", nargs="+", type=Path, help="packs, or folders of packs")
    adopting.add_argument("--replace", action="store_true", help="delete other results of the same chains")
    return parser


def _precision(text: str) -> Precision:
    try:
        return check_precision(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes, more than 0, found {text!r}")
    return value


if __name__ == "__main__":
    main()
