"""The pipeline as DVC runs it: what runs again after a change of params.yaml, and what does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from quantspike import phases

PROJECT = Path(__file__).parent.parent


def run(folder: Path, *command: str) -> str:
    """Runs a command as a user would, with the interpreter of these tests first in the path; returns what it prints."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "QUANTSPIKE_TRACKING": "off",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> list[str]:
    return re.findall(r"^Running stage '(.*)':$", output, flags=re.MULTILINE)


def set_grid(folder: Path, k: list[int | str], weight_bits: int = 12) -> None:
    """The demo's protocol on a network small enough for a test."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["run"] = {"profile": ["demo"], "model": ["cnn1"], "k": k, "seed": [0]}
    params["models"] = {"cnn1": {"layers": "8C3-P2-16"}}
    params["profiles"] = {"demo": params["profiles"]["demo"]}
    params["profiles"]["demo"] |= {"train": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 50, "flip": False}}
    params["profiles"]["demo"]["finetune"]["epochs"] = 1
    params["profiles"]["demo"]["convert"]["weight_bits"] = weight_bits
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("stage", ["pretrain", "train", "finetune"])
def test_code_that_makes_a_saved_training_stale_is_code_that_dvc_watches(stage: str) -> None:
    dependencies = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    package = "src/quantspike/"
    assert [name.removeprefix(package) for name in dependencies if name.startswith(package)] == list(phases.CODE)
    assert dependencies[0] == f"stages/{stage}.py"  # the script, which counts as well
    assert all((PROJECT / package / name).is_file() for name in phases.CODE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("stages", "src", ".dvc/plots"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(PROJECT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    return folder


def test_a_new_k_runs_only_its_own_chain_and_what_shows_all(project: Path) -> None:
    set_grid(project, [0, "fp32"])
    chain = ["train", "finetune", "evaluate", "convert", "simulate"]
    first = stages_run(run(project, "dvc", "repro"))
    expected = ["download@demo", *(f"{stage}@demo-cnn1-{k}-0" for stage in chain for k in (0, "fp32"))]
    assert sorted(first) == sorted([*expected, "pretrain@demo-cnn1-0", "plot@demo-cnn1", "publish"])

    set_grid(project, [0, "fp32", 3])
    second = stages_run(run(project, "dvc", "repro"))
    assert second == [*(f"{stage}@demo-cnn1-3-0" for stage in chain), "plot@demo-cnn1", "publish"]
    assert stages_run(run(project, "dvc", "repro")) == []

    # Back to what was there before: DVC's run cache brings every result back, and nothing is computed again.
    set_grid(project, [0, "fp32", 3], weight_bits=8)
    assert "simulate@demo-cnn1-0-0" in stages_run(run(project, "dvc", "repro"))
    set_grid(project, [0, "fp32", 3])
    back = stages_run(run(project, "dvc", "repro"))
    assert [name for name in back if not name.startswith(("plot", "publish"))] == []

    runs = pd.read_csv(project / "metrics" / "runs.csv", dtype={"k": str})
    assert list(runs["k"]) == ["0", "fp32", "3"]
    spiking = runs[runs["k"] != "fp32"]
    assert (spiking["differing_predictions"] == 0).all()
    assert (spiking["snn_accuracy"] == spiking["integer_accuracy"]).all()


def test_dvc_shows_metrics_plots_and_experiments(project: Path) -> None:
    shown = run(project, "dvc", "metrics", "show").splitlines()
    assert shown[0].split() == ["Path", "ann_accuracy", "snn_accuracy", "spikes", "stable_step", "synops"]
    paths = {f"metrics/demo/cnn1-{k}-0/metrics.json" for k in (0, 3, "fp32")}
    assert {line.split()[0] for line in shown[1:]} == paths
    assert "index.html" in run(project, "dvc", "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    assert "accuracy by step and k" in page
    run(project, "git", "add", "--all")
    run(
        project,
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "commit",
        "--quiet",
        "-m",
        "results",
    )
    drop = "(?!Experiment|.*snn_accuracy).*"
    header, *rows = run(project, "dvc", "exp", "show", "--csv", "--drop", drop).splitlines()
    columns = header.split(",")
    assert {f"metrics/demo/cnn1-{k}-0/metrics.json:snn_accuracy" for k in (0, 3)} <= set(columns)
    assert len(columns) == 3
    assert len(rows) == 2  # the working tree and the commit
