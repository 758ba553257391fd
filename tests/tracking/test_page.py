"""MLflow's page as people see it, in a real browser: the ready-made comparison of k, and the table of runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from browse import CHROMIUM, PATIENCE, browser_page, first_charts
from make_results import make_grid, make_params
from quantspike.reporting.palette import color_of
from quantspike.reporting.results import read_run
from quantspike.tracking.view import published_views
from quantspike.workflow.publishing import publish_results
from tracking_processes import LOCAL, free_port, wait_for_answer

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("there is no chromium (apt-get install chromium)", allow_module_level=True)

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    """The page of a project with a baseline and three k."""
    root = tmp_path_factory.mktemp("project")
    uri = f"sqlite:///{shutil.copy(empty_database, root / 'mlflow.db')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("QUANTSPIKE_TRACKING", raising=False)
        publish_results([read_run(run) for run in make_grid(make_params(), root)], root)
    number, views = published_views(uri) or ("", [])
    assert views == ["overview", "paper-cnn1"]
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", LOCAL, "--port", str(port)]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        [*command, "--backend-store-uri", uri], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for_answer(f"http://{LOCAL}:{port}/health", server)
            page = {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": views[1]}
            yield f"http://{LOCAL}:{port}/#/experiments/{number}/runs?{urlencode(page)}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with browser_page() as page:
        page.goto(address)
        yield page


def test_the_comparison_is_there_when_the_page_opens(page: Any) -> None:
    over_steps, synops, over_synops, final = first_charts(page, 4, lines=3)
    titles = [chart["title"] for chart in (over_steps, synops, over_synops, final)]
    assert titles == ["snn/accuracy", "snn/synops", "snn/accuracy", "final/snn_accuracy"]
    assert over_steps["layout"]["xaxis"]["type"] == "log"
    assert over_synops["layout"]["xaxis"]["title"]["text"] == "snn/synops"
    for chart in (over_steps, over_synops):
        drawn = {line["name"]: line for line in chart["data"] if line.get("name")}
        for k in (0, 1, 2):
            line = drawn[f"paper cnn1 k={k}"]
            # 0.926 + 0.0022 k + 0.0004 after the last step, as make_results has it
            assert line["y"][-1] == round(0.9264 + 0.0022 * k, 4)
            assert color_of(k) in json.dumps(line).lower()


def test_the_table_has_every_run_once_with_the_chief_numbers_as_columns(page: Any) -> None:
    names = page.get_by_role("link", name="paper cnn1 ")
    expect(names).to_have_text(["paper cnn1 fp32", "paper cnn1 k=0", "paper cnn1 k=1", "paper cnn1 k=2"])
    page.locator("label:has(input[type=radio][value=TABLE])").click()
    page.locator(".ag-header-cell[col-id='metrics.`final/synops`']").wait_for()
    columns = ["params.`k`", "metrics.`final/ann_accuracy`", "metrics.`final/snn_accuracy`"]
    columns += ["metrics.`final/stable_step`", "metrics.`final/positive_spikes`", "params.`data.name`"]
    for column in columns:
        expect(page.locator(f'.ag-header-cell[col-id="{column}"]')).to_have_count(1)
    row = ".ag-center-cols-container .ag-row[row-index='2'] .ag-cell"
    expect(page.locator(f"{row}[col-id='params.`k`']")).to_have_text("1")
    expect(page.locator(f"{row}[col-id='metrics.`final/stable_step`']")).to_have_text("62")  # 29 + 33 k
    expect(page.locator(f"{row}[col-id='params.`data.name`']")).to_contain_text("CIFAR-10 (official archive)")
