"""Trained networks in MLflow: they classify as measured, and the registry keeps one version per run."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantspike
from conftest import labelled, with_averages
from quantspike.data.dataset import Dataset, build_dataset
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.params import Precision
from quantspike.tracking.models import ImageClassifier, TrackedModel
from quantspike.tracking.publish import PublishReport, TrackedRun
from quantspike.training.evaluation import predict
from tracking_processes import (
    KEY,
    LINEAR,
    artifacts_of,
    client_of,
    fork,
    linear_model,
    load_linear,
    make_tracked_run,
    published,
    rows,
    the_run,
    versions_of,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

SOMEBODY = "somebody-nobody-knows"
HOST = "a-machine-nobody-knows"


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def make_network(
    k: Precision = 1, channels: int = 1, size: int = 9, crop: int = 6, weight_bits: int | None = None
) -> tuple[QuantizedCNN, Dataset]:
    """Return a network that has seen some images, and these."""
    images = labelled(80, 1, channels, size), labelled(301, 2, channels, size)
    dataset = build_dataset(*images, ("top", "middle", "bottom"), kind="images", name="rows")
    architecture = Architecture.parse("6C3-P2-9", image_size=crop, image_channels=channels, classes=3)
    return with_precision(with_averages(new_network(architecture, k, 0, 4.0), dataset), k, weight_bits), dataset


# The network with the preparation of images


@pytest.mark.parametrize(("channels", "size", "crop"), [(1, 8, 8), (3, 9, 6), (3, 9, 8)])
@pytest.mark.parametrize("k", ["fp32", 1])
def test_it_gives_the_scores_that_are_measured(k: Precision, channels: int, size: int, crop: int) -> None:
    network, dataset = make_network(k, channels, size, crop)
    images = torch.from_numpy(dataset.test_images)
    expected = predict(network, images, crop)
    assert len(expected.argmax(1).unique()) > 1
    with torch.inference_mode():
        scores = ImageClassifier(network)(images)
    # The batches differ in size.
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_it_is_in_evaluation_mode_and_changes_no_average() -> None:
    network, dataset = make_network()
    network.train()
    classifier = ImageClassifier(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier(torch.from_numpy(dataset.test_images))
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# What is stored


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_a_stored_network_classifies_without_this_package_and_tells_nothing_of_the_machine(
    weight_bits: int | None, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, dataset = make_network(weight_bits=weight_bits)
    folder = tmp_path / SOMEBODY
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, SOMEBODY)
    monkeypatch.setenv("SOMETHING_SECRET", f"the password of {SOMEBODY}")
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    example = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    model = TrackedModel("small", "tiny-k1", 0, lambda: (ImageClassifier(network), example), [_integers(folder)])
    assert published([make_tracked_run(folder, model=model)], uri) == PublishReport(created=1)
    monkeypatch.undo()

    images = tmp_path / "images.npy"
    np.save(images, dataset.test_images)
    process = fork(_classify, uri, images, tmp_path / "classes.npy")
    process.join(600)
    assert process.exitcode == 0
    expected = predict(network, torch.from_numpy(dataset.test_images), 6).argmax(1)
    assert np.load(tmp_path / "classes.npy").tolist() == expected.tolist()

    stored = _stored_files(uri, tmp_path)
    assert {"model/MLmodel", "model/requirements.txt", "model/data/model.pt2", "network/convert.safetensors"} < set(
        stored
    )
    secrets = [SOMEBODY, HOST, str(Path(quantspike.__file__).parent), sys.prefix]
    told = {name: secret for name, data in stored.items() for secret in secrets if secret.encode() in data}
    assert told == {}


def _integers(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "convert.safetensors"
    path.write_bytes(b"an integer network")
    return path


def _classify(uri: str, images: Path, result: Path) -> None:
    """Load the network by its alias as others do, and check what it says of its input and output."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "quantspike"]:
        sys.modules[name] = None  # type: ignore[assignment]
    import mlflow
    from mlflow.models import get_model_info

    mlflow.set_tracking_uri(uri)
    signature = get_model_info("models:/quantspike-small@tiny-k1").signature
    (given,), (found,) = signature.inputs.to_dict(), signature.outputs.to_dict()
    assert given["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 1, 9, 9)}
    assert found["tensor-spec"] == {"dtype": "float32", "shape": (-1, 3)}
    network = mlflow.pytorch.load_model("models:/quantspike-small@tiny-k1")
    with torch.inference_mode():
        scores = torch.cat([network(part) for part in torch.from_numpy(np.load(images)).split(100)])
    np.save(result, scores.argmax(1).numpy())


def _stored_files(uri: str, folder: Path) -> dict[str, bytes]:
    """Return the database and every file of the run, also those within the exported graph."""
    run = the_run(uri)
    own = folder / "mlartifacts" / run.info.run_id / "artifacts"
    stored = {"the database": (folder / "mlflow.db").read_bytes()}
    stored |= {name: (own / name).read_bytes() for name in artifacts_of(uri, run)}
    with zipfile.ZipFile(own / "model/data/model.pt2") as archive:
        return stored | {f"model.pt2: {name}": archive.read(name) for name in archive.namelist()}


# The registry


def make_seed(folder: Path, seed: int, loss: float = 0.5, **changes: Any) -> TrackedRun:
    """Return the run of a seed with its network."""
    return make_tracked_run(folder, f"paper-cnn1-1-{seed}", loss, **{"model": linear_model(seed)} | changes)


def holder(uri: str, alias: str = "paper-k1") -> str:
    """Return the key of the run whose network has an alias."""
    client = client_of(uri)
    run = client.get_run(client.get_model_version_by_alias(LINEAR, alias).run_id)
    return str(run.data.tags["quantspike.key"])


def test_an_alias_points_to_the_lowest_seed_however_accurate_the_others_are(uri: str, tmp_path: Path) -> None:
    best, lowest = make_seed(tmp_path, 2, loss=0.01), make_seed(tmp_path, 1, loss=0.9)
    other = make_seed(tmp_path, 10, model=linear_model(10, "paper-k2"))
    published([best, other], uri)
    assert (holder(uri), holder(uri, "paper-k2")) == (best.key, other.key)
    published([best, lowest, other], uri)
    assert (holder(uri), holder(uri, "paper-k2")) == (lowest.key, other.key)
    assert [version.aliases for version in versions_of(uri)] == [[], ["paper-k2"], ["paper-k1"]]


def test_a_replaced_run_leaves_no_version(uri: str, tmp_path: Path) -> None:
    published([make_seed(tmp_path, seed) for seed in (0, 1)], uri)
    new = make_seed(tmp_path, 0, loss=0.25)
    assert published([new], uri) == PublishReport(replaced=1)
    assert len(versions_of(uri)) == 2
    assert holder(uri) == new.key
    # Without its network the alias goes to the lowest seed that has one.
    published([make_seed(tmp_path, 0, loss=0.1, model=None)], uri)
    assert [version.run_id for version in versions_of(uri)] == [the_run(uri, "paper-cnn1-1-1").info.run_id]
    assert holder(uri) == "paper-cnn1-1-1"


def test_a_network_that_comes_later_is_added_to_the_same_run(uri: str, tmp_path: Path) -> None:
    run = make_seed(tmp_path, 0)
    without = replace(run, model=None)
    published([without], uri)
    before = the_run(uri).info.run_id
    assert published([run], uri) == PublishReport(updated=1)
    assert the_run(uri).info.run_id == before
    assert "model/MLmodel" in artifacts_of(uri, the_run(uri))
    stored = rows(uri)
    assert published([run], uri) == published([without], uri) == PublishReport(unchanged=1)
    assert (rows(uri), holder(uri)) == (stored, KEY)


def test_a_registered_model_that_was_deleted_comes_back(uri: str, tmp_path: Path) -> None:
    published([make_seed(tmp_path, 0)], uri)
    client_of(uri).delete_registered_model(LINEAR)
    assert published([make_seed(tmp_path, 0)], uri) == PublishReport(updated=1)
    assert holder(uri) == KEY


def test_versions_and_aliases_of_users_stay(uri: str, tmp_path: Path) -> None:
    client = client_of(uri)
    published([make_seed(tmp_path, 0)], uri)
    client.create_model_version(LINEAR, "somewhere", None)
    client.set_registered_model_alias(LINEAR, "mine", "1")
    client.set_registered_model_alias(LINEAR, "theirs", "2")
    published([make_seed(tmp_path, 1)], uri)
    assert [sorted(version.aliases) for version in versions_of(uri)] == [["mine", "paper-k1"], ["theirs"], []]


def test_networks_of_another_experiment_stay(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published([make_seed(tmp_path, 0)], uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    published([make_seed(tmp_path, 1)], uri)
    published([make_seed(tmp_path, 1, loss=0.25)], uri)  # replaces the second version
    assert [version.version for version in versions_of(uri)] == [1, 3]


def test_a_network_that_cannot_be_kept_is_reported_and_does_not_disturb_the_rest(uri: str, tmp_path: Path) -> None:
    def damaged() -> Any:
        raise QuantspikeError("finetune.safetensors is damaged")

    def strange() -> Any:
        return torch.nn.Linear(1, 1), torch.zeros(2, 7)

    loads = (damaged, strange, load_linear)
    runs = [make_seed(tmp_path, seed, model=linear_model(seed, load=load)) for seed, load in enumerate(loads)]
    report = published(runs, uri)
    assert report.created == 3
    first, second = report.problems
    assert first == f"the network of {runs[0].name} is not in MLflow: finetune.safetensors is damaged"
    assert second.startswith(f"the network of {runs[1].name} is not in MLflow: mat1 and mat2 shapes")
    assert "\n" not in second
    assert [version.run_id for version in versions_of(uri)] == [the_run(uri, runs[2].key).info.run_id]
    assert published(runs, uri) == PublishReport(unchanged=3, problems=report.problems)


def test_no_place_for_temporary_files_is_a_problem_of_the_network(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    report = published([make_seed(tmp_path, 0)], uri)
    assert report.created == 1
    (problem,) = report.problems
    assert problem.startswith(f"the network of {KEY} is not in MLflow: [Errno 2] No such file or directory: ")


@pytest.mark.parametrize("call", ["log_artifacts", "create_model_version", "set_registered_model_alias"])
def test_a_publisher_killed_while_it_keeps_a_network_is_made_good_by_the_next_one(
    call: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"mlflow.MlflowClient.{call}", killed)
        with pytest.raises(KeyboardInterrupt):
            published([make_seed(tmp_path, 0)], uri)
    published([make_seed(tmp_path, 0)], uri)
    assert [version.aliases for version in versions_of(uri)] == [["paper-k1"]]
    assert published([make_seed(tmp_path, 0)], uri) == PublishReport(unchanged=1)
