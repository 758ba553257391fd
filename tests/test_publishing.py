"""What of a chain's results goes to MLflow, and that MLflow's troubles never fail the stage."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from make_results import make_chain, make_made_with, make_params, make_pretraining
from quantspike.palette import color_of
from quantspike.params import Params
from quantspike.paths import Chain, chains
from quantspike.publishing import publish_results, tracked_runs
from quantspike.results import FILES, ChainResult, read_chain, read_finished
from quantspike.tracking import TrackedRun


def results_of(params: Params, root: Path) -> list[ChainResult]:
    for chain in chains(params, root):
        make_chain(chain)
    return read_finished(chains(params, root), params)


def tracked(params: Params, root: Path) -> list[TrackedRun]:
    return tracked_runs(results_of(params, root), params, root)


def test_a_name_says_only_what_tells_runs_apart(tmp_path: Path) -> None:
    assert [run.name for run in tracked(make_params(k=["fp32", 2]), tmp_path)] == ["cnn1 fp32", "cnn1 k=2"]
    assert [run.name for run in tracked(make_params(k=[2], seed=[0, 1]), tmp_path)] == [
        "cnn1 k=2 seed=0",
        "cnn1 k=2 seed=1",
    ]


def test_a_name_bears_the_profile_where_there_are_several(tmp_path: Path) -> None:
    params = make_params(k=[2])
    run = params.run.model_copy(update={"profile": ["paper", "demo"]})
    params = params.model_copy(update={"run": run, "profiles": dict.fromkeys(run.profile, params.profiles["paper"])})
    assert [run.name for run in tracked(params, tmp_path)] == ["paper cnn1 k=2", "demo cnn1 k=2"]


def test_settings_are_published_as_params_under_dotted_names(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=[1]), tmp_path)
    assert run.key == "paper-cnn1-1-0"
    expected = {"profile": "paper", "model": "cnn1", "k": 1, "seed": 0, "neurons": 336_128, "weights": 7_852_576}
    expected |= {"layers": "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024", "data.crop": 24, "width": 1.0}
    expected |= {"data.name": "CIFAR-10 (official archive)", "train.epochs": 100, "train.learning_rate": 1e-3}
    expected |= {"finetune.learning_rate": 1e-4, "convert.weight_bits": 12, "simulate.steps": 100}
    expected |= {"arithmetic": "fp32", "device": "some processor", "processes": 1, "torch": "2.11.0"}
    assert expected.items() <= run.params.items()


def test_a_path_to_the_images_is_not_published(tmp_path: Path) -> None:
    params = make_params(k=[1], data={"source": "/home/someone/images.tar.gz", "crop": 24})
    (run,) = tracked(params, tmp_path)
    assert "someone" not in f"{run.params} {run.tags} {run.description}"


def test_curves_of_all_phases_are_published(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=[1]), tmp_path)
    training = ["learning_rate", "loss", "seconds", "test_accuracy", "train_accuracy"]  # nothing was held out
    spiking = ["accuracy", "negative_spikes", "net_spikes", "positive_spikes", "settled", "synops"]
    by_layer = [f"layers/{name}" for name in ("settled", "spikes_per_neuron", "synops")]
    names = [*(f"finetune/{name}" for name in training), *by_layer, *(f"snn/{name}" for name in spiking)]
    assert sorted(run.curves) == [*names, *(f"train/{name}" for name in training)]
    assert [step for step, _ in run.curves["snn/accuracy"]] == list(range(1, 101))


def test_epochs_of_the_second_phase_count_on_from_the_first(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=[1]), tmp_path)
    assert run.curves["train/loss"][:3] == [(1, 1.5), (2, 0.75), (3, 0.5)]  # 1.5 / epoch
    assert [step for step, _ in run.curves["finetune/loss"]] == list(range(101, 201))
    assert run.seconds == 1900.0  # 200 epochs of 9.5 s


def test_a_run_shows_the_training_that_every_k_shares(tmp_path: Path) -> None:
    params = make_params(k=[1], pretrain={"epochs": 3})
    (chain,) = chains(params, tmp_path)
    make_chain(chain, made_with=make_made_with(settings=params.profiles["paper"].training_settings))
    make_pretraining(chain, epochs=3)
    (run,) = tracked_runs(read_finished([chain], params), params, tmp_path)
    assert run.curves["pretrain/loss"] == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.curves["train/loss"][0] == (4, 1.5)
    assert run.curves["finetune/loss"][-1][0] == 203
    assert (tmp_path / "metrics/paper/cnn1-fp32-0/pretrain.csv", "metrics") in run.artifacts
    assert run.seconds == 203 * 9.5
    assert run.params["pretrain.epochs"] == 3
    (alone,) = tracked(make_params(k=[1]), tmp_path / "alone")
    assert {name for name in alone.params if name.startswith("pretrain.")} == {"pretrain.epochs"}


def test_final_measures_are_those_of_the_result_files(tmp_path: Path) -> None:
    params = make_params(k=[1])
    (result,) = results_of(params, tmp_path)
    (run,) = tracked_runs([result], params, tmp_path)
    assert result.snn is not None
    assert run.finals["final/snn_accuracy"] == result.snn.accuracy
    assert run.finals["final/synops"] == round(result.snn.synops, 1)
    assert run.finals["final/stable_step"] == 62  # 29 + 33 k
    assert run.finals["final/settled_step"] == 89  # 27 steps later
    assert run.finals["final/macs"] == 399_190_016


def test_a_run_that_never_settled_has_no_settled_step(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=[2]), tmp_path)  # made without one
    assert "final/settled_step" not in run.finals
    assert "| settled step (every neuron at rest) | never |" in run.description


def test_fp32_has_no_spiking_measures(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=["fp32"]), tmp_path)
    assert run.finals == {"final/ann_accuracy": 0.9266, "final/macs": 399_190_016}
    assert not [name for name in run.curves if name.startswith("snn/")]
    assert "SNN" not in run.description


def test_the_description_is_a_table_and_names_the_images(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=["fp32"]), tmp_path)
    assert run.description == (
        "| measure | value |\n| --- | ---: |\n"
        "| accuracy of the ANN | 92.66% |\n"
        "| multiply-accumulates of the ANN per image | 399,190,016 |\n\n"
        "Tested on 10,000 images: CIFAR-10 (official archive)."
    )


def test_tags_colour_the_run_and_hide_the_user(tmp_path: Path) -> None:
    params = make_params(k=[1])
    (run,) = tracked_runs(results_of(params, tmp_path), params, tmp_path, commit="abcd")
    assert run.tags == {
        **{"profile": "paper", "model": "cnn1", "k": "1", "seed": "0", "recipe": "paper"},
        "mlflow.runColor": color_of(1),
        **{"mlflow.user": "quantspike", "mlflow.source.name": "quantspike", "mlflow.source.type": "LOCAL"},
    }
    assert run.commit == "abcd"


def test_artifacts_are_the_result_files(tmp_path: Path) -> None:
    (run,) = tracked(make_params(k=[1]), tmp_path)
    folder = tmp_path / "metrics" / "paper" / "cnn1-1-0"
    assert run.artifacts == [(folder / name, "metrics") for name in FILES]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("QUANTSPIKE_TRACKING", raising=False)
    make_chain(Chain("paper", "cnn1", 1, 0, tmp_path), steps=100)
    return tmp_path


def commit_all(folder: Path) -> None:
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "src").mkdir()
    (folder / "src" / "code.py").write_text("")
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    for command in (["init", "-q"], ["add", "dvc.yaml", "src"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", folder, *command], check=True)


def published_commit(root: Path) -> str | None:
    publish_project(root)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    number = client.get_experiment_by_name("quantspike").experiment_id
    return client.search_runs([number])[0].data.tags.get("mlflow.source.git.commit")


def publish_project(root: Path) -> None:
    params = make_params(k=[1])
    publish_results([read_chain(Chain("paper", "cnn1", 1, 0, root), params)], params, root)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_project_is_published_with_its_commit_and_nothing_else_is_printed(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commit_all(project)
    publish_project(project)
    line = "MLflow: {} created, 0 updated, {} unchanged, 0 superseded in sqlite:///{}/mlflow.db\n"
    assert capfd.readouterr() == (line.format(1, 0, project.resolve()), "")
    publish_project(project)
    assert capfd.readouterr() == (line.format(0, 1, project.resolve()), "")


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_code_that_was_not_committed_marks_the_commit(project: Path, empty_database: Path) -> None:
    commit_all(project)
    command = ["git", "-C", project, "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    shutil.copy(empty_database, project / "mlflow.db")
    assert published_commit(project) == head  # results and other files that are not committed do not count
    subprocess.run(["git", "-C", project, "config", "status.showUntrackedFiles", "no"], check=True)
    (project / "src" / "more.py").write_text("x = 1\n")
    shutil.copy(empty_database, project / "mlflow.db")
    assert published_commit(project) == f"{head}-dirty"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_repository_that_the_project_only_lies_in_gives_no_commit(
    project: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    around = tmp_path_factory.mktemp("around")
    commit_all(around)
    inner = shutil.copytree(project, around / "inner")
    (inner / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(empty_database, inner / "mlflow.db")
    assert published_commit(inner) is None


def test_tracking_that_is_off_is_said_in_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUANTSPIKE_TRACKING", "off")
    publish_project(project)
    assert capsys.readouterr() == ("MLflow: tracking is off (QUANTSPIKE_TRACKING), nothing published\n", "")
    assert not (project / "mlflow.db").exists()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_server_that_is_away_is_a_warning_and_no_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard service: nobody runs it
    publish_project(project)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("warning: MLflow at http://127.0.0.1:9 cannot be used: ")
    assert printed.err.endswith("Nothing is lost, `make publish` delivers the runs later\n")
    assert printed.err.count("\n") == 1
