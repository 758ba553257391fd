"""`python -m quantspike.ui`: opens MLflow's pages on the published runs."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlencode

from quantspike.errors import QuantspikeError
from quantspike.tracking import published_views, shown_uri, tracking_uri

_HOST = "127.0.0.1"

# MLflow opens in its mode for language models, and with a bare table, otherwise.
_PAGE = {"workflowType": "machine_learning", "compareRunsMode": "CHART"}

# Two processes in place of a dozen: nobody queues jobs here. No usage data.
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main() -> None:
    """Prints the address of the page that compares the runs, and serves it unless a server does so already."""
    parser = argparse.ArgumentParser(description="Shows the published runs in MLflow, until Ctrl-C.")
    parser.add_argument("--port", type=int, default=5000, help="port on this machine (default: %(default)s)")
    port = parser.parse_args().port
    uri = tracking_uri(Path("."))
    try:
        if uri.startswith(("http://", "https://")):
            print(_invitation(shown_uri(uri).rstrip("/"), uri))
        else:
            invitation = _invitation(f"http://{_HOST}:{port}", uri)
            _check_port(port)
            print(invitation, flush=True)
            _become_server(uri, port)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")


def _invitation(server: str, uri: str) -> str:
    found = published_views(uri)
    if found is None:
        raise QuantspikeError(
            f"nothing is published in {shown_uri(uri)} yet: run `dvc repro`, or `python stages/publish.py` "
            "if there are results already"
        )
    number, views = found
    page = f"{server}/#/experiments/{number}/runs?"
    if not views:  # published by an older version, or training only
        return f"Compare the runs at {page}{urlencode(_PAGE)}"
    width = max(map(len, views))
    lines = (f"  {view:{width}}  {page}{urlencode(_PAGE | {'viewStateShareKey': view})}" for view in views)
    return "\n".join(["Compare the runs at", *lines])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise QuantspikeError(f"port {port} cannot be used ({error}): name another one with --port") from error


def _become_server(uri: str, port: int) -> None:
    command = ["-m", "mlflow", "ui", "--workers", "1", "--host", _HOST, "--port", str(port)]
    # The address of a store may hold a password, which does not belong on a command line that others can see.
    environment = {**_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    os.execve(sys.executable, [sys.executable, *command], environment)


if __name__ == "__main__":
    main()
