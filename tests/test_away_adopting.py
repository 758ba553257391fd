"""Packs taken into a project: DVC then finds the chain as if it had run it; what was made otherwise is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from away_projects import grid, make_job, make_project
from quantspike.away.adopting import adopt
from quantspike.away.running import run_chains
from quantspike.errors import QuantspikeError
from quantspike.params import load_params
from test_pipeline import run

STAGES = ("train", "finetune", "evaluate", "convert", "simulate")
METRICS = Path("metrics") / "demo" / "small-1-0"


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs of both precisions of a network, made in a project elsewhere."""
    elsewhere = make_project(tmp_path_factory.mktemp("elsewhere") / "project")
    run_chains(make_job(elsewhere), grid(elsewhere)[:2])
    return elsewhere / "build" / "packs"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with images, under DVC, that has run nothing else."""
    project = make_project(tmp_path / "project")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    (project / "data" / "demo").mkdir(parents=True)
    (project / "data" / "demo" / "images.safetensors").write_text("images")
    return project


def take(project: Path, *places: Path, replace: bool = False) -> list[str]:
    params_file = project / "params.yaml"
    return adopt(places, load_params(params_file), params_file, replace=replace)


def set_grid(project: Path, name: str, values: list[object]) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["run"][name] = values
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def files(project: Path) -> set[str]:
    found = (path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file())
    return {path for path in found if path.startswith(("data/", "metrics/")) or path == "dvc.lock"}


def test_dvc_finds_adopted_chains_unchanged_and_runs_only_what_shows_them(project: Path, packs: Path) -> None:
    set_grid(project, "model", ["small"])
    run(project, "dvc", "repro", "download@demo")
    assert take(project, packs) == ["demo-small-1-0", "demo-small-fp32-0"]
    dry = run(project, "dvc", "repro", "--dry", "--allow-missing", "plot@demo-small")
    names = [f"{stage}@demo-small-{k}-0" for stage in STAGES for k in (1, "fp32")]
    unchanged = sorted(["download@demo", "pretrain@demo-small-0", *names])
    assert sorted(re.findall(r"^Stage '(.*)' didn't change", dry, flags=re.M)) == unchanged
    assert re.findall(r"^Running stage '(.*)'", dry, flags=re.M) == ["plot@demo-small"]

    assert not (project / "data/demo/small-1-0/train.safetensors").exists()
    network = project / "data/demo/small-1-0/integer/network.safetensors"
    assert network.read_text() == "integers of small-1-0"
    # Carried to a machine again, the tree tells that these chains are done.
    assert run_chains(make_job(project), grid(project)[:2]).skipped == ["demo-small-1-0", "demo-small-fp32-0"]
    # The logs are in DVC's cache, like those of a chain that ran here.
    shutil.rmtree(project / METRICS / "logs")
    run(project, "dvc", "checkout", str(METRICS / "logs"))
    assert (project / METRICS / "logs" / "a" / "c.txt").read_text() == "a/c.txt of small-1-0"


def test_adopting_gives_the_lock_that_running_here_gives(project: Path, packs: Path) -> None:
    other = project.with_name("other")
    shutil.copytree(project, other)
    run(project, "dvc", "repro", "simulate@demo-small-1-0")
    here = yaml.safe_load((project / "dvc.lock").read_text())
    pack = packs / "demo-small-1-0.tar.gz"
    take(other, pack)
    del here["stages"]["download@demo"]
    assert yaml.safe_load((other / "dvc.lock").read_text()) == here
    # Where everything is at hand, it changes nothing.
    before = (project / "dvc.lock").read_text()
    assert take(project, pack) == ["demo-small-1-0"]
    assert (project / "dvc.lock").read_text() == before
    assert (project / "data/demo/small-1-0/train.safetensors").exists()


def test_every_difference_is_named_and_nothing_is_written(project: Path, packs: Path) -> None:
    before = files(project)
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["profiles"]["demo"]["train"]["epochs"] = 3
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    with (project / "src" / "quantspike" / "training.py").open("a") as file:
        file.write("# changed\n")
    (project / "dvc.yaml").write_text(
        (project / "dvc.yaml").read_text().replace("python stages/train.py", "python -u stages/train.py")
    )
    (project / "data" / "demo" / "images.safetensors").write_text("other images")
    with pytest.raises(QuantspikeError) as refused:
        take(project, packs)
    found = str(refused.value)
    assert found.startswith("demo-small-1-0 was made otherwise than the project is now (commit there: unknown):\n")
    assert "  profiles.demo.train.epochs is 3 here, 1 there\n" in found
    assert re.search(r"  src/quantspike/training\.py: MD5 \w+ here, MD5 \w+ there\n", found)
    assert re.search(r"  data/demo/images\.safetensors: MD5 \w+ here, MD5 \w+ there\n", found)
    assert "the command is 'python -u stages/train.py --profile demo" in found
    assert len(found.splitlines()) == 6  # each of the four once, between two sentences
    assert files(project) == before


def test_a_chain_outside_the_grid_is_refused(project: Path, packs: Path) -> None:
    set_grid(project, "k", [0, "fp32"])
    with pytest.raises(QuantspikeError, match=r"demo-small-1-0 is not in the grid of .*: add it to run"):
        take(project, packs)


def test_other_results_stay_unless_they_are_to_be_replaced(project: Path, packs: Path, tmp_path: Path) -> None:
    elsewhere = make_project(tmp_path / "elsewhere")
    (elsewhere / "accuracy.txt").write_text("0.75")  # two trainings on a GPU are never quite the same
    run_chains(make_job(elsewhere), grid(elsewhere)[:1])
    take(project, elsewhere / "build" / "packs")
    weights = project / "data" / "demo" / "small-1-0" / "train.safetensors"
    weights.write_text("weights of a training here")
    before = files(project)
    with pytest.raises(QuantspikeError) as refused:
        take(project, packs)
    assert str(refused.value).startswith(
        "the project has other results of demo-small-1-0: data/demo/small-1-0/train.safetensors, "
        "metrics/demo/small-1-0/train.csv, metrics/demo/small-1-0/finetune.csv. With --replace they are deleted"
    )
    assert files(project) == before
    take(project, packs, replace=True)
    # Weights of another training would look changed to DVC; those of this one are known by their hash.
    assert not weights.exists()
    assert (project / METRICS / "train.csv").read_text() == "epoch,test_accuracy\n1,0.5\n"
    assert "0.5" in (project / METRICS / "finetune.csv").read_text()


@pytest.mark.parametrize("lock", ["of the project", "of the outputs"])
def test_while_dvc_is_at_work_nothing_is_taken(lock: str, project: Path, packs: Path) -> None:
    from dvc.repo import Repo, lock_repo
    from dvc.rwlock import rwlock

    before = files(project)
    with Repo(str(project)) as repo, ExitStack() as held:
        if lock == "of the project":
            held.enter_context(lock_repo(repo))
        else:  # which is all that `dvc repro` holds while a stage runs
            outputs = [str(project / METRICS / "train.csv")]
            held.enter_context(rwlock(repo.tmp_dir, repo.fs, "dvc repro", [], outputs, False))
        with pytest.raises(QuantspikeError, match="another command of DVC is at work here"):
            take(project, packs)
    assert files(project) == before


def test_what_cannot_be_put_in_its_place_leaves_everything_as_it_was(project: Path, packs: Path) -> None:
    (project / "metrics" / "demo").mkdir(parents=True)
    (project / "metrics" / "demo" / "small-fp32-0").write_text("a file in the place of the second chain's folder")
    before = files(project)
    with pytest.raises(QuantspikeError, match=r"dvc\.lock is as it was, the same command tries again"):
        take(project, packs)
    assert files(project) == before


def test_a_broken_lock_file_is_named_and_nothing_is_taken(project: Path, packs: Path) -> None:
    (project / "dvc.lock").write_text("<<<<<<< HEAD\n")
    before = files(project)
    with pytest.raises(QuantspikeError, match=r"DVC cannot work with .*/project as it is: .*dvc\.lock"):
        take(project, packs)
    assert files(project) == before


def test_other_params_than_those_dvc_reads_are_refused(project: Path, packs: Path) -> None:
    other = project / "other.yaml"
    shutil.copy(project / "params.yaml", other)
    with pytest.raises(QuantspikeError, match=r"DVC reads params\.yaml alone, .* not .*other\.yaml"):
        adopt([packs], load_params(other), other)


def test_stages_that_dvc_finds_changed_afterwards_are_named(
    project: Path, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.stage import PipelineStage

    monkeypatch.setattr(PipelineStage, "changed", lambda stage, **_: stage.name.startswith("convert"))
    with pytest.raises(QuantspikeError, match="DVC finds convert@demo-small-1-0, convert@demo-small-fp32-0 changed"):
        take(project, packs)
