"""dvc.yaml read without DVC, against DVC's own reading."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from away_projects import make_project
from quantspike.away.pipeline import STAGES, hash_path, params_of, stages_of
from quantspike.errors import QuantspikeError
from quantspike.paths import Chain


def test_stages_and_hashes_are_those_of_dvc(tmp_path: Path) -> None:
    from dvc.repo import Repo

    project = make_project(tmp_path / "project")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    logs = project / "metrics" / "demo" / "small-1-0" / "logs"
    for name in ("b.txt", "a/c.txt", "a.txt", "a-b.txt"):  # in the order of paths a-b, a.txt, a/c
        (logs / name).parent.mkdir(parents=True, exist_ok=True)
        (logs / name).write_text(name)
    stages = stages_of(Chain("demo", "small", 1, 0, project))
    assert [stage.name for stage in stages] == list(STAGES)
    with Repo(str(project)) as repo:
        for ours in stages:
            theirs = repo.stage.load_one(str(project / "dvc.yaml"), ours.address)
            params = next(dep for dep in theirs.deps if hasattr(dep, "params"))
            assert ours.command == theirs.cmd
            assert sorted(ours.inputs) == sorted(dep.def_path for dep in theirs.deps if dep is not params)
            assert sorted(ours.params) == sorted(params.params)
            assert sorted(ours.outputs) == sorted(out.def_path for out in theirs.outs)
            params.save()
            assert params_of(ours, project / "params.yaml") == params.hash_info.value
        (out,) = (out for out in theirs.outs if out.def_path.endswith("logs"))
        out.save()
        found = hash_path(logs)
        assert (found.md5, found.size, found.nfiles) == (out.hash_info.value, out.meta.size, out.meta.nfiles)


def test_what_is_no_pipeline_of_this_form_is_refused(tmp_path: Path) -> None:
    chain = Chain("demo", "small", 1, 0, tmp_path)
    with pytest.raises(QuantspikeError, match=r"dvc\.yaml is not here: run from the project's folder"):
        stages_of(chain)
    (tmp_path / "dvc.yaml").write_text("stages: {download: {cmd: 'python ${other}', outs: ['${other}']}}")
    with pytest.raises(QuantspikeError, match=r"\$\{other\} holds something else than \$\{item\.profile\}"):
        stages_of(chain)


def test_params_that_are_missing_are_named(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    train = stages_of(Chain("demo", "small", 1, 0, project))[2]
    (project / "params.yaml").write_text("models: {small: {}}\nprofiles: {demo: {width: 1}}\n")
    with pytest.raises(QuantspikeError, match=r"lacks profiles\.demo\.data\.crop, which train@demo-small-1-0 reads"):
        params_of(train, project / "params.yaml")
