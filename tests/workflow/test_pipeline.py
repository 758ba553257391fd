"""The pipeline as DVC runs it: what runs again after a change of params.yaml, and what does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from conftest import PARAMS

PROJECT = Path(__file__).parents[2]
ALWAYS = {"publish"}
"""DVC's run cache restores no stage with plain outputs that it does not cache; MLflow must follow the files anyway."""


def dvc(folder: Path, *words: str) -> str:
    """Run DVC as a user would, with the interpreter of these tests first in the path; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "QUANTSPIKE_TRACKING": "off", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["dvc", *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(folder: Path, k: list[int], weight_bits: int = 12, **changes: Any) -> set[str]:
    """Run the pipeline with this grid and these changes; return the stages that ran."""
    content = yaml.safe_load(yaml.safe_dump(PARAMS)) | changes
    content["grid"]["k"] = k
    content["profiles"]["tiny"]["convert"]["weight_bits"] = weight_bits
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return set(re.findall(r"^Running stage '(.*)':$", dvc(folder, "repro"), flags=re.MULTILINE))


def stages_of(k: int) -> set[str]:
    stages = ("train", "finetune", "evaluate", "convert", "simulate")
    return {f"{stage}@tiny-small-{k}-0" for stage in stages}


def results(folder: Path) -> dict[str, bytes]:
    """Return the content of all result files and plots of runs."""
    files = [path for part in ("metrics/tiny", "plots") for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without results."""
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp", "config.local")
    for name in ("stages", "src", ".dvc"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def test_a_change_runs_what_it_concerns_and_going_back_restores_the_rest(project: Path) -> None:
    plot = "plot@tiny-small"
    shared = {"download@tiny", "baseline@tiny-small-0"}
    assert repro(project, [0]) == {*shared, *stages_of(0), plot, *ALWAYS}

    assert repro(project, [0, 3]) == {*stages_of(3), plot, *ALWAYS}  # a new k runs alone
    before = results(project)

    # The last state of fine-tuning gives the same network back, so `evaluate` has nothing to do.
    changed = {f"{stage}@tiny-small-0-0" for stage in ("finetune", "convert", "simulate")}
    assert repro(project, [0], weight_bits=8) == {*changed, plot, *ALWAYS}
    assert results(project) != before

    # Back to the params before: DVC's run cache restores every result and every plot, a deleted one too. Another device
    # or way to start processes runs nothing.
    next((project / "plots/tiny/small").glob("*.svg")).unlink()
    assert repro(project, [0, 3], device="auto", launch="torchrun --nproc-per-node 1") == ALWAYS
    assert results(project) == before

    runs = pd.read_csv(project / "metrics" / "runs.csv", dtype={"k": str})
    assert list(runs["k"]) == ["fp32", "0", "3"]


def test_dvc_shows_metrics_and_plots(project: Path) -> None:
    shown = [line.split()[0] for line in dvc(project, "metrics", "show").splitlines()[1:]]
    assert shown == [f"metrics/tiny/small-{k}-0/simulate.json" for k in (0, 3)]
    dvc(project, "plots", "show")
    images = {path.name for path in (project / "dvc_plots" / "static").iterdir()}
    drawn = (project / "plots/tiny/small").iterdir()
    assert images == {f"workspace_plots_tiny_small_{path.name}" for path in drawn if path.suffix in (".png", ".svg")}
    page = (project / "dvc_plots" / "index.html").read_text()
    for file in ("small-fp32-0/baseline.csv", "small-0-0/train.csv", "small-3-0/simulate.csv"):
        assert f"metrics/tiny/{file}" in page
