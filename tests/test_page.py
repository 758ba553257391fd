"""MLflow's page as people see it, in a real browser: the comparison of k, the table, a run and its artifacts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from browse import CHROMIUM, SECONDS, browser_page, first_charts
from make_results import make_chain, make_params
from quantspike.figures import accuracy_speed, compare_results, save
from quantspike.palette import color_of
from quantspike.paths import chains, plots_folder
from quantspike.publishing import publish_results
from quantspike.results import read_all
from quantspike.summary import write_summary

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("there is no chromium (apt-get install chromium)", allow_module_level=True)

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=1000 * SECONDS)

PRECISIONS = ("fp32", 0, 1, 2)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a project with results of four precisions, one of which has superseded another."""
    root = tmp_path_factory.mktemp("project")
    params = make_params(k=PRECISIONS)
    for chain in chains(params, root):
        make_chain(chain)
    results = read_all(chains(params, root), params)
    write_summary(results, root / "metrics")
    save(accuracy_speed(compare_results(results, params.energy)), plots_folder("paper", "cnn1", root), "accuracy_speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("QUANTSPIKE_TRACKING", raising=False)
        publish_results(results, params, root)
        certificate = root / "metrics" / "paper" / "cnn1-1-0" / "certificate.json"
        certificate.write_text(json.dumps(json.loads(certificate.read_text()) | {"layers": 10}))
        publish_results(read_all(chains(params, root), params), params, root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "quantspike.ui", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        # The command prints the addresses of the views, then becomes the server.
        lines = [server.stdout.readline().split() for _ in range(3)]
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield dict(line for line in lines if len(line) == 2)["paper-cnn1"]
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str) -> None:
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < until, "the server did not answer"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with browser_page() as page:
        page.goto(address)
        yield page


def test_the_comparison_is_there_when_the_page_opens(page: Any) -> None:
    over_steps, synops, over_synops, final = first_charts(page, 4, lines=3)
    assert [chart["title"] for chart in (over_steps, synops, over_synops, final)] == [
        "snn/accuracy",
        "snn/synops",
        "snn/accuracy",
        "final/snn_accuracy",
    ]
    assert over_steps["layout"]["xaxis"]["type"] == "log"
    assert over_synops["layout"]["xaxis"]["title"]["text"] == "snn/synops"
    for chart in (over_steps, over_synops):
        drawn = {line["name"]: line for line in chart["data"] if line.get("name")}
        for k in (0, 1, 2):
            line = drawn[f"cnn1 k={k}"]
            # 0.926 + 0.0022 k + 0.0004 after the last step, as make_results has it
            assert line["y"][-1] == round(0.9264 + 0.0022 * k, 4)
            assert color_of(k) in json.dumps(line).lower()


def test_every_run_stands_there_once_and_what_is_superseded_does_not(page: Any) -> None:
    names = page.get_by_role("link", name="cnn1 ")
    expect(names).to_have_text(["cnn1 fp32", "cnn1 k=0", "cnn1 k=1", "cnn1 k=2"])
    assert page.get_by_text("(superseded)").count() == 0


def test_the_table_has_the_chief_numbers_as_columns(page: Any) -> None:
    page.locator("label:has(input[type=radio][value=TABLE])").click()
    page.locator(".ag-header-cell[col-id='metrics.`final/synops`']").wait_for()
    columns = ["params.`k`", "metrics.`final/ann_accuracy`", "metrics.`final/snn_accuracy`"]
    columns += ["metrics.`final/stable_step`", "metrics.`final/positive_spikes`", "attributes.`Dataset`"]
    for column in columns:
        expect(page.locator(f'.ag-header-cell[col-id="{column}"]')).to_have_count(1)
    row = ".ag-center-cols-container .ag-row[row-index='2'] .ag-cell"
    expect(page.locator(f"{row}[col-id='params.`k`']")).to_have_text("1")
    expect(page.locator(f"{row}[col-id='metrics.`final/stable_step`']")).to_have_text("62")  # 29 + 33 k
    expect(page.locator(f"{row}[col-id='attributes.`Dataset`']")).to_contain_text("CIFAR-10 (official archive)")


def open_run(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="cnn1 k=1").click()
    page.get_by_role("heading", name="cnn1 k=1").wait_for()


def test_the_page_of_a_run_tells_its_result_and_its_curves(page: Any, address: str) -> None:
    open_run(page, address)
    page.get_by_role("cell", name="92.86%").first.wait_for()
    page.get_by_text("Tested on 10,000 images").first.wait_for()
    page.get_by_role("tab", name="Model metrics").click()
    sections = page.get_by_test_id("experiment-view-compare-runs-section-header")
    for name in ("final", "finetune", "layers", "snn", "train"):
        sections.filter(has_text=re.compile(rf"^{name}\b")).wait_for()


def test_figures_tables_and_the_certificate_are_artifacts(page: Any, address: str) -> None:
    open_run(page, address)
    page.get_by_role("tab", name="Artifacts").click()
    tree = page.get_by_test_id("artifact-tree-node")
    tree.filter(has_text="figures").first.click()
    tree.filter(has_text="accuracy_speed.png").click()
    picture = page.locator("img[src*=blob], img[src*=accuracy_speed]").first
    picture.wait_for()
    page.wait_for_function("image => image.naturalWidth > 1000", arg=picture.element_handle())
    tree.filter(has_text="metrics").first.click()
    tree.filter(has_text="certificate.json").click()
    page.get_by_text('"mismatches"').first.wait_for()
    tree.filter(has_text="summary").first.click()
    tree.filter(has_text="summary.md").wait_for()  # the list of a folder arrives after the click that opened it
