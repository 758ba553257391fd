"""Trained networks as MLflow keeps them: whole, named, loaded by anyone, and telling nothing of the machine."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import socket
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import quantspike
from conftest import PARAMS
from quantspike.errors import QuantspikeError
from quantspike.params import load_params
from quantspike.paths import Chain
from quantspike.publishing import publish_results, tracked_runs
from quantspike.results import read_chain
from quantspike.tracking import PublishReport, TrackedModel, TrackedRun, publish
from stage_processes import ALL_K, CHAIN, STAGES
from tracking_processes import (
    LINEAR,
    ResultFiles,
    Server,
    artifacts_of,
    client_of,
    fork,
    linear_model,
    rows,
    the_run,
    versions_of,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

KEY = "tiny-small-1-0"
MODEL = "quantspike-small"
SOMEBODY = "somebody-nobody-knows"
HOST = "a-machine-nobody-knows"


@dataclass(frozen=True)
class Project:
    """A folder with a trained chain."""

    folder: Path

    def run(self) -> TrackedRun:
        params = load_params(self.folder / "params.yaml")
        chain = Chain("tiny", "small", 1, 0, self.folder)
        (run,) = tracked_runs([read_chain(chain, params)], params, self.folder, commit="abcd")
        return run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp(SOMEBODY)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    stages = ("download", "pretrain", "train", "finetune", "evaluate", "convert", "simulate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTSPIKE_TRACKING", "off")
        patch.chdir(folder)
        for stage in stages:
            arguments = {"download": CHAIN[:4], "pretrain": ALL_K}.get(stage, CHAIN)
            patch.setattr(sys, "argv", [f"{stage}.py", *arguments])
            runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
    return Project(folder)


@pytest.fixture(scope="module")
def published(project: Project, mlflow_server: Server) -> Server:
    """A server that shows the chain, as it came from somebody's machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, SOMEBODY)
        patch.setenv("HOME", f"/home/{SOMEBODY}")
        patch.setenv("SOMETHING_SECRET", f"the password of {SOMEBODY}")
        patch.setattr(socket, "gethostname", lambda: HOST)
        assert publish([project.run()], uri=mlflow_server.uri) == PublishReport(created=1)
    return mlflow_server


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def test_a_loaded_network_gives_the_accuracy_that_was_logged_without_this_package(
    project: Project, published: Server, tmp_path: Path
) -> None:
    process = fork(_classify, published.uri, project.folder / "data/tiny/images.safetensors", tmp_path / "correct.txt")
    process.join(60)
    assert process.exitcode == 0
    accuracy = the_run(published.uri, KEY).data.metrics["final/ann_accuracy"]
    assert 0.2 < accuracy < 1
    assert (tmp_path / "correct.txt").read_text().split() == [str(round(accuracy * 360))] * 3


def _classify(uri: str, path: Path, result: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "quantspike"]:
        sys.modules[name] = None  # type: ignore[assignment]
    import mlflow

    mlflow.set_tracking_uri(uri)
    network = mlflow.pytorch.load_model(f"models:/{MODEL}@tiny-k1")
    images = load_file(path)
    with torch.inference_mode(), result.open("w") as file:
        for size in (1, 100, 360):
            scores = torch.cat([network(part) for part in images["test_images"].split(size)])
            print(int((scores.argmax(1) == images["test_labels"]).sum()), file=file)


def test_it_says_what_goes_in_and_what_comes_out(published: Server) -> None:
    from mlflow.models import get_model_info

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", published.uri)
        signature = get_model_info(f"models:/{MODEL}@tiny-k1").signature
    (given,), (found,) = signature.inputs.to_dict(), signature.outputs.to_dict()
    assert given["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 1, 8, 8)}
    assert found["tensor-spec"] == {"dtype": "float32", "shape": (-1, 10)}


def test_nothing_that_is_stored_tells_of_the_machine_or_its_user(project: Project, published: Server) -> None:
    run = the_run(published.uri, KEY)
    folder = published.folder / "artifacts"
    (own,) = folder.glob(f"*/{run.info.run_id}/artifacts")
    names = artifacts_of(published.uri, run)
    assert {"model/MLmodel", "model/requirements.txt", "model/data/model.pt2", "params.yaml"} < set(names)
    stored = {"the database": published.database.read_bytes()} | {name: (own / name).read_bytes() for name in names}
    with zipfile.ZipFile(own / "model/data/model.pt2") as archive:
        stored |= {f"model.pt2: {name}": archive.read(name) for name in archive.namelist()}
    secrets = [SOMEBODY, HOST, str(project.folder), str(Path(quantspike.__file__).parent), sys.prefix]
    told = {name: secret for name, content in stored.items() for secret in secrets if secret.encode() in content}
    assert told == {}


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (["data/images.tar.gz", "cifar10"], True),
        ("/home/somebody/images.tar.gz", False),
        (["cifar10", "~/images"], False),
        ("../somebody/images", False),
        ("data/../../somebody/images", False),
        ("$HOME/images", False),
        (r"C:\Users\somebody\images", False),
        (r"data\..\..\somebody", False),
        ("file:///home/somebody", False),
    ],
)
def test_a_path_outside_the_project_keeps_the_params_file_away(
    source: Any, shown: bool, project: Project, tmp_path: Path
) -> None:
    copy = shutil.copytree(project.folder, tmp_path / "copy")
    content = yaml.safe_load((copy / "params.yaml").read_text())
    content["profiles"]["tiny"]["data"]["source"] = source
    (copy / "params.yaml").write_text(yaml.safe_dump(content))
    assert ((copy / "params.yaml", "") in Project(copy).run().extras) == shown


def test_a_network_that_comes_later_is_added_to_the_same_run(project: Project, uri: str, tmp_path: Path) -> None:
    run = project.run()
    assert run.model is not None
    without = replace(run, model=None)
    publish([without], uri=uri)
    number = the_run(uri, KEY).info.run_id
    assert publish([run], uri=uri) == PublishReport(updated=1)
    found = the_run(uri, KEY)
    assert found.info.run_id == number
    assert found.data.tags["quantspike.weights"] == run.model.digest
    assert "model/MLmodel" in artifacts_of(uri, found)
    before = rows(tmp_path / "mlflow.db")
    assert publish([run], uri=uri) == publish([without], uri=uri) == PublishReport(unchanged=1)
    assert rows(tmp_path / "mlflow.db") == before


def test_weights_or_images_that_are_not_at_hand_are_no_trouble(project: Project, tmp_path: Path) -> None:
    copy = Project(shutil.copytree(project.folder, tmp_path / "copy"))
    images = copy.folder / "data/tiny/images.safetensors"
    assert copy.run().model is not None
    images.rename(tmp_path / "elsewhere")
    assert copy.run().model is None
    (tmp_path / "elsewhere").rename(images)
    (copy.folder / "data/tiny/small-1-0/finetune.safetensors").unlink()
    assert copy.run().model is None


# Which is the best


def best(uri: str, alias: str = "paper-k1") -> str:
    """The chain whose network bears an alias."""
    client = client_of(uri)
    run = client.get_run(client.get_model_version_by_alias(LINEAR, alias).run_id)
    return str(run.data.tags["quantspike.chain"])


def run_of(folder: Path, seed: int, model: TrackedModel | None, loss: float = 0.5) -> TrackedRun:
    return ResultFiles(folder, f"paper-cnn1-1-{seed}", loss, {"model": model}).run()


def test_the_best_network_of_a_k_bears_its_name_and_a_better_one_takes_it_over(uri: str, tmp_path: Path) -> None:
    first, second = run_of(tmp_path, 0, linear_model(0.8, "a")), run_of(tmp_path, 1, linear_model(0.7, "b"))
    other = run_of(tmp_path, 2, linear_model(0.6, "c", alias="paper-k2"))
    publish([first, second, other], uri=uri)
    assert (best(uri), best(uri, "paper-k2")) == (first.key, other.key)
    better = run_of(tmp_path, 1, linear_model(0.9, "d"), loss=0.1)
    assert publish([first, better, other], uri=uri) == PublishReport(created=1, unchanged=2, superseded=1)
    assert (best(uri), best(uri, "paper-k2")) == (better.key, other.key)
    assert sorted(alias for version in versions_of(uri) for alias in version.aliases) == ["paper-k1", "paper-k2"]


def test_of_equal_networks_the_first_one_is_the_best(uri: str, tmp_path: Path) -> None:
    runs = [run_of(tmp_path, seed, linear_model(0.8, str(seed))) for seed in range(2)]
    publish(runs, uri=uri)
    assert best(uri) == runs[0].key


def test_the_best_network_keeps_its_name_where_its_weights_are_not_at_hand(uri: str, tmp_path: Path) -> None:
    good, poor = run_of(tmp_path, 0, linear_model(0.9, "a")), run_of(tmp_path, 1, linear_model(0.8, "b"))
    publish([good, poor], uri=uri)
    # as a clone does that has fetched one network only, and one whose grid has that seed only
    assert publish([replace(good, model=None), poor], uri=uri) == PublishReport(unchanged=2)
    assert publish([poor], uri=uri) == PublishReport(unchanged=1)
    assert best(uri) == good.key


def test_a_name_passes_from_a_superseded_network_to_the_best_that_is_left(uri: str, tmp_path: Path) -> None:
    good, poor = run_of(tmp_path, 0, linear_model(0.9, "a")), run_of(tmp_path, 1, linear_model(0.8, "b"))
    publish([good, poor], uri=uri)
    worse = run_of(tmp_path, 0, None, loss=0.9)
    assert publish([worse, poor], uri=uri) == PublishReport(created=1, superseded=1, updated=1)
    assert best(uri) == poor.key
    superseded = [version.tags.get("quantspike.superseded") for version in versions_of(uri)]
    assert sorted(superseded, key=str) == [None, "true"]


def test_a_name_is_nobodys_until_the_newest_network_is_at_hand(uri: str, tmp_path: Path) -> None:
    publish([run_of(tmp_path, 0, linear_model(0.9, "a"))], uri=uri)
    publish([run_of(tmp_path, 0, None, loss=0.1)], uri=uri)
    assert [version.aliases for version in versions_of(uri)] == [[]]
    again = run_of(tmp_path, 0, linear_model(0.95, "b"), loss=0.1)
    assert publish([again], uri=uri) == PublishReport(updated=1)
    assert best(uri) == again.key


def test_results_that_come_back_give_their_network_its_name_back(uri: str, tmp_path: Path) -> None:
    for loss, accuracy in ((0.5, 0.9), (0.1, 0.95), (0.5, 0.9)):
        publish([run_of(tmp_path, 0, linear_model(accuracy, str(accuracy)), loss)], uri=uri)
    first, second = sorted(versions_of(uri), key=lambda version: int(version.version))
    assert (first.aliases, first.tags["quantspike.superseded"]) == (["paper-k1"], "false")
    assert (second.aliases, second.tags["quantspike.superseded"]) == ([], "true")


def test_a_name_and_a_version_made_by_hand_are_taken_on(uri: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, 0, None)
    publish([run], uri=uri)
    client = client_of(uri)
    client.create_registered_model(LINEAR)
    client.create_model_version(LINEAR, "somewhere", the_run(uri, run.key).info.run_id)
    run = replace(run, model=linear_model(0.9, "a"))
    assert publish([run], uri=uri) == PublishReport(updated=1)
    assert best(uri) == run.key
    assert len(versions_of(uri)) == 1


@pytest.mark.parametrize("damage", [None, "x", "nan"])
def test_a_damaged_accuracy_is_the_worst_of_all_until_it_is_written_anew(
    damage: str | None, uri: str, tmp_path: Path
) -> None:
    good, poor = run_of(tmp_path, 0, linear_model(0.9, "a")), run_of(tmp_path, 1, linear_model(0.8, "b"))
    publish([good, poor], uri=uri)
    client = client_of(uri)
    if damage is None:
        client.delete_model_version_tag(LINEAR, "1", "quantspike.accuracy")
    else:
        client.set_model_version_tag(LINEAR, "1", "quantspike.accuracy", damage)
    publish([replace(good, model=None), poor], uri=uri)
    assert best(uri) == poor.key
    publish([good, poor], uri=uri)
    assert best(uri) == good.key


def test_another_experiment_takes_no_names_away(uri: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, 0, linear_model(0.9, "a"))
    publish([run], uri=uri)
    publish([], uri=uri, experiment="another")
    assert best(uri) == run.key


def test_of_many_registered_names_none_is_overlooked(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    search = MlflowClient.search_registered_models
    monkeypatch.setattr(
        MlflowClient,
        "search_registered_models",
        lambda self, condition=None, **options: search(self, condition, **options | {"max_results": 1}),
    )
    names = ["quantspike-a", "quantspike-b", "quantspike-c"]
    runs = [run_of(tmp_path, seed, replace(linear_model(), name=name)) for seed, name in enumerate(names)]
    publish(runs, uri=uri)
    assert [versions_of(uri, name)[0].aliases for name in names] == [["paper-k1"]] * 3


def test_a_run_that_is_deleted_while_its_network_is_saved_is_a_problem_of_its_own(uri: str, tmp_path: Path) -> None:
    runs = [run_of(tmp_path, seed, linear_model(0.8, str(seed))) for seed in range(2)]
    model = runs[0].model
    assert model is not None

    def deleted_meanwhile() -> Any:
        client_of(uri).delete_run(the_run(uri, runs[0].key).info.run_id)
        return model.load()

    report = publish([replace(runs[0], model=replace(model, load=deleted_meanwhile)), runs[1]], uri=uri)
    problem = f"the network of {runs[0].name} is not in MLflow: its run was deleted meanwhile; publish again"
    assert report == PublishReport(created=2, problems=(problem,))
    assert best(uri) == runs[1].key


def test_names_that_users_give_stay(uri: str, tmp_path: Path) -> None:
    client = client_of(uri)
    publish([run_of(tmp_path, 0, linear_model(0.9, "a"))], uri=uri)
    client.set_registered_model_alias(LINEAR, "mine", "1")
    client.create_model_version(LINEAR, "somewhere", None)
    client.set_registered_model_alias(LINEAR, "theirs", "2")
    publish([run_of(tmp_path, 0, linear_model(0.95, "b"), loss=0.1)], uri=uri)
    aliases = {version.version: version.aliases for version in versions_of(uri)}
    assert aliases == {1: ["mine"], 2: ["theirs"], 3: ["paper-k1"]}


def test_no_place_for_temporary_files_is_a_problem_of_the_network(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    report = publish([run_of(tmp_path, 0, linear_model())], uri=uri)
    assert report.created == 1
    (problem,) = report.problems
    assert "is not in MLflow: FileNotFoundError: " in problem
    assert "nowhere" in problem


def test_a_network_that_cannot_be_kept_is_reported_and_keeps_nothing_else_away(uri: str, tmp_path: Path) -> None:
    def damaged() -> Any:
        raise QuantspikeError("finetune.safetensors is damaged")

    def strange() -> Any:
        return torch.nn.Linear(1, 1), np.zeros((2, 7), np.float32)

    models = [
        replace(linear_model(), load=damaged),
        replace(linear_model(), load=strange),
        linear_model(0.1),
    ]
    runs = [run_of(tmp_path, seed, model) for seed, model in enumerate(models)]
    report = publish(runs, uri=uri)
    assert report.created == 3
    first, second = report.problems
    assert first == f"the network of {runs[0].name} is not in MLflow: finetune.safetensors is damaged"
    assert second.startswith(f"the network of {runs[1].name} is not in MLflow: RuntimeError: ")
    assert "\n" not in second
    assert [version.run_id for version in versions_of(uri)] == [the_run(uri, runs[2].key).info.run_id]
    assert publish(runs, uri=uri) == PublishReport(unchanged=3, problems=report.problems)


def test_a_problem_with_a_network_is_a_warning_of_the_stage(
    project: Project, tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(project.folder, tmp_path / "copy")
    shutil.copy(empty_database, copy / "mlflow.db")
    weights = copy / "data/tiny/small-1-0/finetune.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    params = load_params(copy / "params.yaml")
    publish_results([read_chain(Chain("tiny", "small", 1, 0, copy), params)], params, copy)
    printed = capsys.readouterr()
    assert printed.out.startswith("MLflow: 1 created, 0 updated, 0 unchanged, 0 superseded in ")
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: the network of small k=1 is not in MLflow: ")
    assert "finetune.safetensors is damaged" in line
