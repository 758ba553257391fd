"""The command `quantspike`: results on the terminal and in README.md, MLflow's page, and logs of other simulations."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from quantspike.errors import QuantspikeError
from quantspike.files import write_text
from quantspike.paths import grid_runs, plots_folder
from quantspike.reporting.logs import Logs, find_logs, labelled, read_logs, table
from quantspike.reporting.published import LAYERS
from quantspike.reporting.results import RunResult, read_finished
from quantspike.reporting.summary import console_table, paper_sections
from quantspike.tracking.store import shown_uri, tracking_uri
from quantspike.tracking.view import published_views
from quantspike.workflow.cli import load_checked_params, unread_output_dropped

BEGIN = "<!-- results: begin (make readme) -->"
END = "<!-- results: end -->"
"""Markers in README.md; the results stand between them."""

_HOST = "127.0.0.1"

# Without these, MLflow opens in its mode for language models, and with a bare table.
_PAGE = {"workflowType": "machine_learning", "compareRunsMode": "CHART"}

# Two processes in place of a dozen, since nobody queues jobs here; no usage data.
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main() -> None:
    """Parse the command line and run a command; user errors, and output that cannot be written, exit with status 1."""
    with unread_output_dropped() as errors:
        _run(_parser().parse_args())
    if errors:
        gone = isinstance(errors[0], BrokenPipeError)  # as `... | head` does: no error
        sys.exit(128 + signal.SIGPIPE if gone else f"error: the output cannot be written: {errors[0]}")


def _run(options: argparse.Namespace) -> None:
    try:
        if options.command == "check":
            print(f"{options.params} is valid: {len(grid_runs(load_checked_params(options.params)))} runs")
        elif options.command == "results":
            print(overview(options.params, options.profile))
        elif options.command == "readme":
            print(update_readme(options.readme, options.params, options.profile))
        elif options.command == "ui":
            serve(options.port)
        else:
            print(show_logs(options.folders, options.images, options.steps, options.batch, options.plot, options.model))
    except QuantspikeError as error:
        sys.exit(f"error: {error}")


def overview(params_file: Path, profile: str | None = None) -> str:
    """Return the table of all finished runs, and where figures and tables lie.

    Args:
        params_file: params.yaml, in the project's folder.
        profile: only the runs of this profile.

    Raises:
        QuantspikeError: the params or a result cannot be read, or nothing is finished.
    """
    results, root = _finished(params_file, profile), params_file.parent
    folders = sorted({plots_folder(result.run.profile, result.run.model, root) for result in results})
    return "\n".join(
        [
            console_table(results),
            "",
            "Figures:    " + ", ".join(f"{folder}/" for folder in folders),
            f"Tables:     {root / 'metrics' / 'summary.md'} (.csv, .tex)",
            "Runs:       make ui   opens the MLflow UI on http://127.0.0.1:5000",
        ]
    )


def update_readme(readme: Path, params_file: Path, profile: str | None = None) -> str:
    """Replace the text between the markers by the results, and return a line about it.

    Args:
        readme: the file with the markers.
        params_file: params.yaml, in the project's folder.
        profile: only the results of this profile; otherwise of all, those with published figures first.

    Raises:
        QuantspikeError: a file cannot be read, a marker is missing or duplicate, or nothing is finished.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuantspikeError(f"{readme} cannot be read: {error}; name the file to edit with --readme") from error
    if not (text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)):
        raise QuantspikeError(f"{readme} must hold the line {BEGIN} and, below it, the line {END}, once each")
    results = _finished(params_file, profile)
    published = {result.run.profile for result in results if result.published is not None}
    results.sort(key=lambda result: result.run.profile not in published)
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme.resolve(), f"{before}{BEGIN}\n\n{paper_sections(results, level=3).strip()}\n\n{END}{after}")
    return f"{readme} shows the results of {', '.join(dict.fromkeys(result.run.profile for result in results))}"


def serve(port: int) -> None:
    """Print the address of the page that compares the runs, and serve it unless a server does so already.

    Args:
        port: on this machine.

    Raises:
        QuantspikeError: nothing is published yet, or the port cannot be used.
    """
    uri = tracking_uri(Path("."))
    if uri.startswith(("http://", "https://")):
        print(_addresses(shown_uri(uri).rstrip("/"), uri))
        return
    addresses = _addresses(f"http://{_HOST}:{port}", uri)
    _check_port(port)
    print(addresses, flush=True)
    command = ["-m", "mlflow", "ui", "--workers", "1", "--host", _HOST, "--port", str(port)]
    # The address of a store may hold a password, which does not belong on a command line that others can see.
    environment = {**_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    os.execve(sys.executable, [sys.executable, *command], environment)


def show_logs(
    folders: Sequence[Path], images: int, steps: int, batch: int | None, plot: Path | None, model: str | None
) -> str:
    """Return a table of simulation logs in the published format, and draw them if asked to.

    Args:
        folders: of logs, or of folders k0, k1, ...
        images: images in each simulation.
        steps: steps of each simulation.
        batch: images in each batch but the last, to be checked.
        plot: folder for figures of all these logs together.
        model: published network beside which they are drawn.

    Raises:
        QuantspikeError: a log is absent or cannot be what it says, or the figures cannot be written.
    """
    # Each folder once, however often and by whatever path it is named.
    found = {folder.resolve(): folder for given in folders for folder in find_logs(given)}
    logs = [read_logs(folder, images, steps, batch) for folder in found.values()]
    lines = [table(logs), "", f"After step {steps}; spikes and SOPs per image, averages of {images:,} images."]
    if plot is not None:
        _draw(logs, plot, model)
        lines.append(f"Figures: {plot}/")
    return "\n".join(lines)


def _draw(logs: Sequence[Logs], folder: Path, model: str | None) -> None:
    from quantspike.reporting.figures import LOG_FIGURES
    from quantspike.reporting.figures.comparison import compare_logs  # matplotlib, which reading logs does not need
    from quantspike.reporting.figures.style import save

    comparison = compare_logs(labelled(logs), model)
    for name, draw in LOG_FIGURES.items():
        save(draw(comparison), folder, name)


def _finished(params_file: Path, profile: str | None) -> list[RunResult]:
    """Return the results of all finished runs, or of those of one profile."""
    params = load_checked_params(params_file)
    if profile is not None and profile not in params.grid.profile:
        raise QuantspikeError(
            f"--profile {profile} is not in grid.profile of {params_file}, which has {', '.join(params.grid.profile)}"
        )
    runs = [run for run in grid_runs(params, params_file.parent) if profile in (None, run.profile)]
    results = read_finished(runs)
    if not results:
        raise QuantspikeError("no run is finished: run `dvc repro`, or `make demo` for the digits")
    return list(results)


def _addresses(server: str, uri: str) -> str:
    found = published_views(uri)
    if found is None:
        raise QuantspikeError(
            f"nothing is published in {shown_uri(uri)} yet: run `dvc repro`, or `python stages/publish.py` "
            "if there are results already"
        )
    number, views = found
    page = f"{server}/#/experiments/{number}/runs?"
    width = max(map(len, views), default=0)
    lines = (f"  {view:{width}}  {page}{urlencode(_PAGE | {'viewStateShareKey': view})}" for view in views)
    return "\n".join(["Compare the runs at", *lines])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise QuantspikeError(f"port {port} cannot be used ({error}): name another one with --port") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quantspike", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="whether params.yaml is valid")
    results = commands.add_parser("results", help="the finished runs, and where figures and tables lie")
    readme = commands.add_parser("readme", help="the results between the markers of README.md")
    readme.add_argument("--readme", type=Path, default=Path("README.md"), help="file to edit (default: %(default)s)")
    for command in (check, results, readme):
        command.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    for command in (results, readme):
        command.add_argument("--profile", help="only the runs of this profile")
    ui = commands.add_parser("ui", help="MLflow's page that compares the runs, until Ctrl-C")
    ui.add_argument("--port", type=int, default=5000, help="port on this machine (default: %(default)s)")
    logs = commands.add_parser("logs", help="simulation logs in the published format, whoever wrote them")
    logs.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="logs, or a folder of k0, k1, ...")
    logs.add_argument("--images", type=_positive, required=True, metavar="N", help="images in each simulation")
    logs.add_argument("--steps", type=_positive, required=True, metavar="T", help="steps of each simulation")
    logs.add_argument("--batch", type=_positive, metavar="B", help="images in each batch but the last, to be checked")
    logs.add_argument("--plot", type=Path, metavar="OUT", help="folder for figures of all these logs together")
    logs.add_argument("--model", choices=sorted(LAYERS), help="published network beside which they are drawn")
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)
