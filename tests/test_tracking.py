"""Runs in MLflow: real SQLite stores, and addresses where nobody answers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantspike import tracking
from quantspike.tracking import (
    PublishReport,
    TrackedData,
    TrackedModel,
    TrackedRun,
    TrackingError,
    enabled,
    publish,
    reconcile,
    shown_uri,
    store,
    tracking_uri,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("QUANTSPIKE_TRACKING", raising=False)


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    artifact = tmp_path / "snn.csv"
    artifact.write_text("step,accuracy\n1,0.5\n")
    return TrackedRun(
        name="cnn1 k=1",
        key="paper-cnn1-1-0",
        params={"k": 1, "train.learning_rate": 1e-3},
        tags={"model": "cnn1", "mlflow.runColor": "#d55e00"},
        description="| accuracy | 75% |",
        curves={"snn/accuracy": [(1, 0.5), (2, 0.75)]},
        finals={"final/snn_accuracy": 0.75},
        artifacts=[(artifact, "metrics")],
        seconds=12.0,
    )


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def stored(uri: str) -> list[Any]:
    """All runs that are not deleted, by name."""
    found = tracking.published_views(uri)
    assert found is not None
    number, _ = found
    return sorted(client(uri).search_runs([number]), key=lambda found: found.info.run_name)


def rows(database: Path, table: str) -> int:
    with sqlite3.connect(database) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_run_holds_everything_that_was_given(uri: str, run: TrackedRun) -> None:
    assert publish([run], uri=uri) == PublishReport(created=1)
    (found,) = stored(uri)
    assert found.info.run_name == "cnn1 k=1"
    assert found.info.status == "FINISHED"
    assert found.info.end_time - found.info.start_time == 12_000
    assert found.data.params == {"k": "1", "train.learning_rate": "0.001"}
    assert found.data.metrics == {"snn/accuracy": 0.75, "final/snn_accuracy": 0.75}
    assert found.data.tags["model"] == "cnn1"
    assert found.data.tags["mlflow.note.content"] == "| accuracy | 75% |"
    assert found.data.tags["mlflow.runColor"] == "#d55e00"
    assert found.data.tags["quantspike.chain"] == "paper-cnn1-1-0"
    history = client(uri).get_metric_history(found.info.run_id, "snn/accuracy")
    start = found.info.start_time
    assert [(p.step, p.value, p.timestamp - start) for p in history] == [(1, 0.5, 1000), (2, 0.75, 2000)]


def test_artifacts_lie_beside_the_database(uri: str, run: TrackedRun, tmp_path: Path) -> None:
    publish([run], uri=uri)
    (found,) = stored(uri)
    copy = tmp_path / "mlartifacts" / found.info.run_id / "artifacts" / "metrics" / "snn.csv"
    assert copy.read_text() == "step,accuracy\n1,0.5\n"


def test_publishing_again_changes_nothing(uri: str, run: TrackedRun, database: Path) -> None:
    publish([run], uri=uri)
    counts = {table: rows(database, table) for table in ("runs", "metrics", "params", "tags")}
    assert counts["metrics"] == 3  # two points of the curve and one final value
    assert publish([run], uri=uri) == PublishReport(unchanged=1)
    assert {table: rows(database, table) for table in counts} == counts


def test_a_point_that_was_logged_live_is_not_doubled(uri: str, run: TrackedRun, database: Path) -> None:
    from mlflow.entities import Metric

    publish([run], uri=uri)
    (found,) = stored(uri)
    point = Metric("snn/accuracy", 0.75, found.info.start_time + 2 * 1000, 2)
    client(uri).log_batch(found.info.run_id, metrics=[point])
    assert rows(database, "metrics") == 3


def test_a_lost_database_is_rebuilt(uri: str, run: TrackedRun, database: Path, empty_database: Path) -> None:
    publish([run], uri=uri)
    fingerprint = stored(uri)[0].data.tags["quantspike.fingerprint"]
    other = database.parent / "rebuilt.db"
    shutil.copy(empty_database, other)
    assert publish([run], uri=f"sqlite:///{other}") == PublishReport(created=1)
    assert stored(f"sqlite:///{other}")[0].data.tags["quantspike.fingerprint"] == fingerprint


def test_new_results_make_a_new_run_and_the_old_one_stays_marked(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    better = replace(run, finals={"final/snn_accuracy": 0.8})
    assert publish([better], uri=uri) == PublishReport(created=1, superseded=1)
    new, old = stored(uri)
    assert (new.info.run_name, old.info.run_name) == ("cnn1 k=1", "cnn1 k=1 (superseded)")
    assert new.data.metrics["final/snn_accuracy"] == 0.8
    assert old.data.metrics["final/snn_accuracy"] == 0.75
    assert (new.data.tags["quantspike.superseded"], old.data.tags["quantspike.superseded"]) == ("false", "true")
    assert publish([better], uri=uri) == PublishReport(unchanged=1)


def test_results_that_come_back_take_up_their_old_run(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    publish([replace(run, finals={"final/snn_accuracy": 0.8})], uri=uri)
    assert publish([run], uri=uri) == PublishReport(updated=1, superseded=1)
    current, old = stored(uri)
    assert (current.info.run_name, current.data.metrics["final/snn_accuracy"]) == ("cnn1 k=1", 0.75)
    assert current.data.tags["mlflow.runColor"] == "#d55e00"
    assert (old.info.run_name, old.data.metrics["final/snn_accuracy"]) == ("cnn1 k=1 (superseded)", 0.8)


def test_a_changed_artifact_is_a_new_result(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    run.artifacts[0][0].write_text("step,accuracy\n1,0.6\n")
    assert publish([run], uri=uri) == PublishReport(created=1, superseded=1)


def test_a_new_description_name_or_tag_is_no_new_result(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    renamed = replace(run, name="cnn1 k=1 seed=0", description="Better words.", tags={"model": "CNN 1"})
    assert publish([renamed], uri=uri) == PublishReport(updated=1)
    (found,) = stored(uri)
    assert found.info.run_name == "cnn1 k=1 seed=0"
    assert found.data.tags["mlflow.note.content"] == "Better words."
    assert found.data.tags["model"] == "CNN 1"
    assert publish([renamed], uri=uri) == PublishReport(unchanged=1)


def test_a_new_figure_is_renewed_in_the_same_run(uri: str, run: TrackedRun, tmp_path: Path) -> None:
    figure = tmp_path / "sops.png"
    figure.write_bytes(b"k = 0 and 1")
    run = replace(run, extras=[(figure, "figures")])
    publish([run], uri=uri)
    figure.write_bytes(b"k = 0, 1 and 3")
    assert publish([run], uri=uri) == PublishReport(updated=1)
    assert publish([run], uri=uri) == PublishReport(unchanged=1)
    (found,) = stored(uri)
    copy = tmp_path / "mlartifacts" / found.info.run_id / "artifacts" / "figures" / "sops.png"
    assert copy.read_bytes() == b"k = 0, 1 and 3"


def test_files_that_are_not_at_hand_stay_in_their_run(uri: str, run: TrackedRun, tmp_path: Path) -> None:
    network, figure = tmp_path / "network.safetensors", tmp_path / "sops.png"
    network.write_bytes(b"integers")
    figure.write_bytes(b"k = 1")
    whole = replace(run, extras=[(figure, "figures"), (network, "network")])
    publish([whole], uri=uri)
    fetched_nothing = replace(run, extras=[(figure, "figures")])
    assert publish([fetched_nothing], uri=uri) == PublishReport(unchanged=1)
    assert publish([whole], uri=uri) == PublishReport(unchanged=1)
    (found,) = stored(uri)
    artifacts = tmp_path / "mlartifacts" / found.info.run_id / "artifacts"
    assert (artifacts / "network" / "network.safetensors").read_bytes() == b"integers"


def test_only_the_files_that_changed_are_sent_again(
    uri: str, run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    figures = [tmp_path / name for name in ("accuracy_speed.png", "sops.png")]
    for figure in figures:
        figure.write_bytes(b"k = 1")
    run = replace(run, extras=[(figure, "figures") for figure in figures])
    publish([run], uri=uri)
    figures[1].write_bytes(b"k = 1 and 2")
    sent: list[str] = []
    log_artifact = MlflowClient.log_artifact

    def noted(self: Any, run_id: str, path: str, folder: str | None = None) -> None:
        sent.append(Path(path).name)
        log_artifact(self, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", noted)
    assert publish([run], uri=uri) == PublishReport(updated=1)
    assert sent == ["sops.png"]


@pytest.mark.parametrize("moment", ["before", "when it is dated", "while it is sent"])
def test_a_result_file_that_vanishes_is_no_trouble_of_the_database_or_of_other_runs(
    moment: str, uri: str, run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "certificate.json"
    artifact.write_text("{}")
    doomed = replace(run, name="cnn1 k=2", key="paper-cnn1-2-0", artifacts=[(artifact, "metrics")])
    last_change = TrackedRun.last_change

    def gone_by_then(run: TrackedRun) -> int:
        artifact.unlink(missing_ok=True)
        return last_change(run)

    with monkeypatch.context() as patch:
        if moment == "before":
            artifact.unlink()
        elif moment == "when it is dated":
            patch.setattr(TrackedRun, "last_change", gone_by_then)
        else:
            patch.setattr(reconcile, "_log_data", lambda *_: artifact.unlink())
            doomed = replace(doomed, data=TrackedData("images", "ab", {}))
        report = publish([doomed, run], uri=uri)
    problem = f"cnn1 k=2 is not in MLflow: {artifact} cannot be read: No such file or directory"
    assert report == PublishReport(created=1, problems=(problem,))
    artifact.write_text("{}")
    assert publish([doomed, run], uri=uri) == PublishReport(created=1, unchanged=1)
    assert len(stored(uri)) == 2


def test_a_result_file_that_changes_while_it_is_sent_is_published_the_next_time(
    uri: str, run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = run.artifacts[0][0]
    run = replace(run, data=TrackedData("images", "ab", {}))
    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "_log_data", lambda *_: artifact.write_text("newer"))
        report = publish([run], uri=uri)
    assert report.problems == ("cnn1 k=1 is not in MLflow: its files changed meanwhile; publish again",)
    assert publish([run], uri=uri) == PublishReport(created=1)
    (found,) = stored(uri)
    copy = tmp_path / "mlartifacts" / found.info.run_id / "artifacts" / "metrics" / "snn.csv"
    assert copy.read_text() == "newer"


@pytest.mark.parametrize("content", ["ab" * 32, "12345678", "[1]", "null", "", '{"figures/sops.png": 1}'])
def test_a_damaged_list_of_the_files_is_written_anew(content: str, uri: str, run: TrackedRun, tmp_path: Path) -> None:
    figure = tmp_path / "sops.png"
    figure.write_bytes(b"k = 1")
    run = replace(run, extras=[(figure, "figures")])
    publish([run], uri=uri)
    whole = stored(uri)[0].data.tags["quantspike.extras"]
    client(uri).set_tag(stored(uri)[0].info.run_id, "quantspike.extras", content)
    assert publish([run], uri=uri) == PublishReport(updated=1)
    assert stored(uri)[0].data.tags["quantspike.extras"] == whole


def test_a_kill_while_a_figure_is_renewed_is_made_good_whatever_the_figure_is_then(
    uri: str, run: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    figure = tmp_path / "sops.png"
    figure.write_bytes(b"old")
    run = replace(run, extras=[(figure, "figures")])
    publish([run], uri=uri)
    log_artifact = MlflowClient.log_artifact

    def killed_afterwards(*arguments: Any) -> None:
        log_artifact(*arguments)
        raise KeyboardInterrupt

    figure.write_bytes(b"new")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", killed_afterwards)
        with pytest.raises(KeyboardInterrupt):
            publish([run], uri=uri)
    figure.write_bytes(b"old")
    assert publish([run], uri=uri) == PublishReport(updated=1)
    (found,) = stored(uri)
    copy = tmp_path / "mlartifacts" / found.info.run_id / "artifacts" / "figures" / "sops.png"
    assert copy.read_bytes() == b"old"


def test_the_commit_of_the_first_publication_is_kept(uri: str, run: TrackedRun) -> None:
    commit = "mlflow.source.git.commit"
    publish([replace(run, commit="aaaa")], uri=uri)
    assert publish([replace(run, commit="bbbb")], uri=uri) == PublishReport(unchanged=1)
    tags = stored(uri)[0].data.tags
    assert tags[commit] == "aaaa"
    assert tags["mlflow.note.content"].endswith("Published at commit `aaaa`")


def test_a_run_left_half_written_is_made_again(
    uri: str, run: TrackedRun, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            publish([run], uri=uri)
    assert [found.info.status for found in stored(uri)] == ["RUNNING"]
    assert publish([run], uri=uri) == PublishReport(created=1)
    assert [found.info.status for found in stored(uri)] == ["FINISHED"]
    assert rows(database, "metrics") == 3


def test_runs_of_other_chains_are_left_alone(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    other = replace(run, name="cnn1 k=2", key="paper-cnn1-2-0")
    assert publish([other], uri=uri) == PublishReport(created=1)
    assert [found.info.run_name for found in stored(uri)] == ["cnn1 k=1", "cnn1 k=2"]


def test_curves_longer_than_a_batch_arrive_whole(uri: str, run: TrackedRun, database: Path) -> None:
    long = {"train/loss": [(step, 1 / step) for step in range(1, 2002)]}
    many = {f"p{number}": number for number in range(101)}
    publish([replace(run, curves=long, params=many)], uri=uri)
    assert rows(database, "metrics") == 2001 + 1  # the curve and one final value
    assert rows(database, "params") == 101


def test_nothing_is_told_about_the_user(uri: str, run: TrackedRun, database: Path) -> None:
    publish([run], uri=uri)
    with sqlite3.connect(database) as connection:
        tags = {name for (name,) in connection.execute("SELECT key FROM tags")}
        users = connection.execute("SELECT user_id, source_name FROM runs").fetchall()
    quantspike = {f"quantspike.{name}" for name in ("chain", "fingerprint", "complete", "superseded")}
    assert tags == {"model", "mlflow.runColor", "mlflow.note.content", "mlflow.runName"} | quantspike
    assert users == [("unknown", "")]


def test_an_absent_server_is_reported_in_one_line_without_its_password(run: TrackedRun) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = reserved.getsockname()[1]
        with pytest.raises(TrackingError) as raised:
            publish([run], uri=f"http://someone:secret@127.0.0.1:{port}")
    expected = rf"MLflow at http://127\.0\.0\.1:{port} cannot be used: \[Errno \d+\] Connection refused"
    assert raised.match(f"^{expected}$")


def test_a_file_that_is_no_database_is_reported(run: TrackedRun, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"these are no tables, not one of them" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db is damaged or no MLflow database: move it away or delete it$"):
        publish([run], uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_a_database_of_another_version_is_reported(uri: str, run: TrackedRun, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'bbbb'")
    with pytest.raises(TrackingError, match=r"another version of MLflow: run `mlflow db upgrade sqlite:///.*delete"):
        publish([run], uri=uri)


def test_a_database_that_was_moved_is_reported(uri: str, run: TrackedRun, database: Path, tmp_path: Path) -> None:
    publish([run], uri=uri)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(database, moved / "mlflow.db")
    with pytest.raises(TrackingError, match=r"moved/mlflow\.db was made in another folder, .* delete it"):
        publish([run], uri=f"sqlite:///{moved}/mlflow.db")


def test_a_deleted_experiment_is_reported(uri: str, run: TrackedRun) -> None:
    publish([run], uri=uri)
    number, _ = tracking.published_views(uri)
    client(uri).delete_experiment(number)
    with pytest.raises(TrackingError, match=rf"was deleted .* `mlflow experiments restore --experiment-id {number}`"):
        publish([run], uri=uri)


def test_a_publisher_waits_for_another_one(
    uri: str, run: TrackedRun, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(store, "_SECONDS_FOR_LOCK", 0.05)
    with FileLock(f"{database}.lock"), pytest.raises(TrackingError, match=r"mlflow\.db cannot be used: .*lock"):
        publish([run], uri=uri)
    assert publish([run], uri=uri) == PublishReport(created=1)


def test_without_mlflow_the_message_says_how_to_get_it(
    uri: str, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    with pytest.raises(TrackingError, match=r"MLflow is not installed .*: pip install mlflow$"):
        publish([run], uri=uri)


def test_mlflow_is_imported_only_when_something_is_published() -> None:
    code = "import sys, quantspike.publishing, quantspike.ui; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_store_that_was_never_made_has_no_experiment_and_is_not_made(tmp_path: Path) -> None:
    assert tracking.published_views(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert list(tmp_path.iterdir()) == []


def test_the_store_lies_in_the_project_unless_the_user_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(tmp_path) == "http://server:5000"


@pytest.mark.parametrize(("value", "expected"), [("off", False), ("0", False), ("False", False), ("on", True)])
def test_tracking_is_turned_off_by_the_environment(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert enabled()
    monkeypatch.setenv("QUANTSPIKE_TRACKING", value)
    assert enabled() is expected


def test_an_address_is_shown_without_its_password() -> None:
    assert shown_uri("https://someone:secret@host/path") == "https://host/path"
    assert shown_uri("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"


@pytest.mark.parametrize(
    ("address", "setting"),
    [
        ("postgresql://someone:secret@localhost/db", {}),
        ("http://127.0.0.1:9", {"MLFLOW_HTTP_REQUEST_TIMEOUT": "abc"}),
    ],
)
def test_whatever_mlflow_raises_is_one_line_without_a_password(address: str, setting: dict[str, str]) -> None:
    # In a process of its own, since MLflow keeps what it has read of its settings.
    code = (
        "import sys; from quantspike import tracking\n"
        "try: tracking.publish([], uri=sys.argv[1])\n"
        "except tracking.TrackingError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | setting)
    (line,) = done.stdout.splitlines()
    assert line.startswith("MLflow at ")
    assert "secret" not in line


def test_a_registered_model_that_was_deleted_comes_back(uri: str, run: TrackedRun) -> None:
    model = TrackedModel("quantspike-cnn1", "paper-k1", 0.75, "digest", tiny_model)
    publish([replace(run, model=model)], uri=uri)
    client(uri).delete_registered_model("quantspike-cnn1")
    assert publish([replace(run, model=model)], uri=uri) == PublishReport(updated=1)
    assert client(uri).get_model_version_by_alias("quantspike-cnn1", "paper-k1").run_id == stored(uri)[0].info.run_id


def tiny_model() -> tuple[Any, Any]:
    import numpy as np
    from torch import nn

    return nn.Linear(3, 2).eval(), np.zeros((2, 3), np.float32)
