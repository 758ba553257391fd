"""The command for results made elsewhere, with the stages as they are, where no DVC, MLflow or pandas is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image

from away_projects import PROJECT
from conftest import PARAMS, labelled
from quantspike.away.__main__ import main
from test_pipeline import run

BARE = """
import sys
from importlib.machinery import PathFinder

class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in {names} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
"""A sitecustomize.py by which Python finds some packages no longer."""

STAGES = ("train", "finetune", "evaluate", "convert", "simulate")
HEAVY = {"dvc", "dvc_data", "mlflow", "pandas", "matplotlib", "sklearn", "scipy", "sqlalchemy", "pytest"}


def write_images(path: Path) -> None:
    """An archive of PNG images, for a source that needs nothing but Pillow."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, n, seed in (("train", 200, 1), ("test", 40, 2)):
            for number, (image, label) in enumerate(zip(*labelled(n, seed, size=8), strict=True)):
                content = BytesIO()
                Image.fromarray(image[0]).save(content, "png")
                archive.writestr(f"{split}/{label}/{number:03d}.png", content.getvalue())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This project with a network and images small enough for a test."""
    project = tmp_path / "project"
    for name in ("stages", "src", ".dvc/plots"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config"):
        shutil.copy(PROJECT / name, project / name)
    params = PARAMS | {"run": PARAMS["run"] | {"k": [1]}}
    tiny = params["profiles"]["tiny"]
    tiny = tiny | {
        "data": tiny["data"] | {"source": "data/images.zip"},
        "simulate": tiny["simulate"] | {"engine": "dense"},
    }
    params["profiles"] = {"tiny": tiny}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    write_images(tmp_path / "images.zip")
    return project


def test_a_bare_machine_makes_results_which_dvc_takes_for_its_own(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE.format(names=HEAVY))
    environment = os.environ | {"PYTHONPATH": f"src{os.pathsep}{tmp_path / 'bare'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "quantspike.away", "run", "--profile", "tiny", "--model", "small", "--k", "1"]
    command += ["--minutes", "5", "--source", str(tmp_path / "images.zip"), "--commit", "abc"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "tiny-small-1-0 is finished: tiny-small-1-0.tar.gz" in done.stdout

    run(project, "git", "init", "--quiet")
    (project / "data" / "tiny").mkdir(parents=True)
    shutil.copy(project / "build/away/data/tiny/images.safetensors", project / "data" / "tiny")
    monkeypatch.chdir(project)
    main(["adopt", "build/packs"])  # asks DVC whether it finds the chain unchanged
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    assert list(locked) == ["pretrain@tiny-small-0", *(f"{stage}@tiny-small-1-0" for stage in STAGES)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "papier"], "error: --profile papier is not defined; profiles has demo, short, paper"),
        (["run", "--model", "cnn1", "cnn3"], "error: --model cnn3 is not defined; models has cnn1, cnn2"),
        (["adopt", "nowhere"], "error: nowhere is not there: name packs"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert str(ended.value).startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--minutes", "0", "expected minutes, more than 0, found '0'"),
        ("--k", "fp16", "a precision is fp32 or an integer from 0 to 24, found 'fp16'"),
    ],
)
def test_values_that_are_not_allowed_are_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", option, value])
    assert message in capsys.readouterr().err
