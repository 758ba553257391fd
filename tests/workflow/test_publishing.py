"""What MLflow shows of a run and its results; MLflow's troubles never fail the stage."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import labelled
from make_results import make_grid, make_params, make_run
from quantspike.data.dataset import build_dataset, save_dataset
from quantspike.networks.architecture import architecture_of
from quantspike.networks.cnn import new_network
from quantspike.paths import Run, find_run
from quantspike.reporting.palette import color_of
from quantspike.reporting.results import SPIKING_FILES, RunResult, SpikingResult, read_run
from quantspike.tracking.publish import TrackedRun
from quantspike.training.checkpoints import save_checkpoint
from quantspike.training.optimizer import Optimizer
from quantspike.workflow import publishing
from quantspike.workflow.publishing import live_run, publish_results, run_name, tracked_run


def paper_run(root: Path, k: Any = 1, seed: int = 0, **changes: Any) -> Run:
    """Return a run of the published protocol."""
    return find_run(make_params(**changes), "paper", "cnn1", k, seed, root)


def result_of(root: Path, k: Any = 1, **changes: Any) -> RunResult:
    """Return made-up results of a run."""
    run = paper_run(root, k, **changes)
    make_run(run)
    return read_run(run)


def tracked(root: Path, k: Any = 1, **changes: Any) -> TrackedRun:
    return tracked_run(result_of(root, k, **changes))


# What is shown


@pytest.mark.parametrize(
    ("k", "seed", "name"),
    [("fp32", 0, "paper cnn1 fp32"), (2, 0, "paper cnn1 k=2"), (2, 1, "paper cnn1 k=2 seed=1")],
)
def test_a_name_says_what_tells_runs_apart(k: Any, seed: int, name: str, tmp_path: Path) -> None:
    assert run_name(paper_run(tmp_path, k, seed)) == name


def test_settings_are_published_as_params_under_dotted_names(tmp_path: Path) -> None:
    run = tracked(tmp_path)
    assert run.key == "paper-cnn1-1-0"
    expected = {"profile": "paper", "model": "cnn1", "k": 1, "seed": 0, "neurons": 336_128, "weights": 7_852_576}
    expected |= {"layers": "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024", "data.crop": 24, "width": 1.0}
    expected |= {"data.name": "CIFAR-10 (official archive)", "train.epochs": 100, "train.learning_rate": 1e-3}
    expected |= {"finetune.learning_rate": 1e-4, "convert.weight_bits": 12, "simulate.steps": 100}
    expected |= {"arithmetic": "fp32", "device": "some processor", "processes": 1, "torch": "2.11.0"}
    assert expected.items() <= run.params.items()


def test_a_baseline_has_its_own_settings_and_measures_only(tmp_path: Path) -> None:
    run = tracked(tmp_path, "fp32")
    assert {"baseline.0.epochs": 100, "baseline.1.learning_rate": 1e-4}.items() <= run.params.items()
    assert not [name for name in run.params if name.startswith(("train.", "finetune.", "convert.", "simulate."))]
    assert run.finals == {"final/ann_accuracy": 0.9266, "final/macs": 399_190_016}
    assert {name.partition("/")[0] for name in run.curves} == {"baseline"}
    assert [step for step, _ in run.curves["baseline/loss"]] == list(range(1, 201))
    assert run.description == (
        "| measure | value |\n| --- | ---: |\n"
        "| accuracy of the ANN | 92.66% |\n"
        "| multiply-accumulates of the ANN per image | 399,190,016 |\n\n"
        "Tested on 10,000 images: CIFAR-10 (official archive)."
    )


def test_a_path_to_the_images_is_not_published(tmp_path: Path) -> None:
    run = tracked(tmp_path, data__source="/home/someone/images.tar.gz")
    assert "someone" not in f"{run.params} {run.tags} {run.description}"


def test_curves_of_all_phases_are_published(tmp_path: Path) -> None:
    run = tracked(tmp_path)
    training = ["learning_rate", "loss", "test_accuracy", "train_accuracy"]  # nothing was held out
    spiking = ["accuracy", "negative_spikes", "net_spikes", "positive_spikes", "settled", "synops"]
    by_layer = [f"layers/{name}" for name in ("settled", "spikes_per_neuron", "synops")]
    names = [*(f"finetune/{name}" for name in training), *by_layer, *(f"snn/{name}" for name in spiking)]
    assert sorted(run.curves) == [*names, *(f"train/{name}" for name in training)]
    assert [step for step, _ in run.curves["snn/accuracy"]] == list(range(1, 101))
    assert run.curves["train/loss"][:3] == [(1, 1.5), (2, 0.75), (3, 0.5)]  # 1.5 / epoch
    assert [step for step, _ in run.curves["finetune/loss"]] == list(range(101, 201))
    assert [layer for layer, _ in run.curves["layers/synops"]] == list(range(1, 11))


def test_final_measures_are_those_of_the_result_files(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    run = tracked_run(result)
    assert isinstance(result, SpikingResult)
    assert run.finals["final/snn_accuracy"] == result.simulation.accuracy
    assert run.finals["final/synops"] == round(result.simulation.synops, 1)
    assert run.finals["final/stable_step"] == 62  # 29 + 33 k
    assert run.finals["final/settled_step"] == 89  # 27 steps later
    assert run.finals["final/macs"] == 399_190_016


def test_final_costs_of_the_other_layer_delays_bear_their_names(tmp_path: Path) -> None:
    finals = tracked(tmp_path, 0, simulate__layer_delay=[0, 2, 6]).finals
    assert finals["final/least_synops"] == 189_000_000  # 70% of 270 million
    # 56 + 2 x 9 steps, and 110 are beyond T; 30% of the SOPs divided by 3, and by 7
    assert {name: value for name, value in finals.items() if "_D" in name} == {
        "final/settled_step_D2": 74,
        "final/synops_D2": 216_000_000,
        "final/synops_D6": 200_571_428.6,
    }


def test_a_run_with_images_not_settled_at_T_has_no_settled_and_no_stable_step(tmp_path: Path) -> None:
    run = tracked(tmp_path, 2)  # made with such images
    assert {"final/settled_step", "final/stable_step"}.isdisjoint(run.finals)
    for step in ("settled step (every neuron settled)", "stable step (accuracy no longer changes)"):
        # They settle at the same pace up to step 122, so (1 - 100 / 122) of them later than step 100.
        assert f"| {step} | none; images not settled after step 100: 1,803 |" in run.description


def test_tags_colour_the_run_and_hide_the_user(tmp_path: Path) -> None:
    run = tracked_run(result_of(tmp_path))
    assert run.tags == {
        **{"profile": "paper", "model": "cnn1", "k": "1", "seed": "0", "mlflow.runColor": color_of(1)},
        **{"mlflow.user": "quantspike", "mlflow.source.name": "quantspike", "mlflow.source.type": "LOCAL"},
    }


def test_files_are_the_result_files_and_figures_those_of_the_network(tmp_path: Path) -> None:
    figure = tmp_path / "plots/paper/cnn1/sops.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"a picture")
    run = tracked(tmp_path)
    assert run.files == [tmp_path / "metrics/paper/cnn1-1-0" / name for name in SPIKING_FILES]
    assert run.figures == [figure]


@pytest.mark.parametrize(("k", "file", "alias"), [("fp32", "baseline", "paper-fp32"), (1, "finetune", "paper-k1")])
def test_the_network_is_published_where_it_and_the_images_are_available(
    k: Any, file: str, alias: str, tmp_path: Path
) -> None:
    result = result_of(tmp_path, k, width=0.02)
    run = result.run
    assert tracked_run(result).model is None
    images = labelled(20, 1, 3, 32, 10), labelled(20, 2, 3, 32, 10)
    save_dataset(build_dataset(*images, tuple("0123456789"), kind="images", name="rows"), run.dataset)
    assert tracked_run(result).model is None
    network = new_network(architecture_of(run, 3, 10), k, 0)
    save_checkpoint(run.checkpoint(file), network, Optimizer(network, "adam"), {})
    model = tracked_run(result).model
    assert model is not None
    assert (model.model, model.alias, model.seed, model.files) == ("cnn1", alias, 0, [])
    module, example = model.load()
    with torch.inference_mode():
        assert module(example).shape == (2, 10)


# Publishing


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "QUANTSPIKE_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def publish_project(root: Path) -> None:
    publish_results([read_run(run) for run in make_grid(make_params(k=[1]), root)], root)


def test_a_project_is_published_and_nothing_else_is_printed(
    project: Path, empty_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_database, project / "mlflow.db")
    line = "MLflow: {} created, 0 replaced, 0 updated, {} unchanged in sqlite:///{}/mlflow.db\n"
    publish_project(project)
    assert capfd.readouterr() == (line.format(2, 0, project.resolve()), "")
    publish_project(project)
    assert capfd.readouterr() == (line.format(0, 2, project.resolve()), "")


def test_tracking_that_is_off_is_said_in_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUANTSPIKE_TRACKING", "off")
    publish_project(project)
    assert capsys.readouterr() == ("MLflow: tracking is off (QUANTSPIKE_TRACKING), nothing published\n", "")
    assert not (project / "mlflow.db").exists()


def test_a_copy_of_the_project_leaves_the_runs_of_the_project_alone(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reported runs in a database that DVC then deleted."""
    shutil.copy(empty_database, project / "mlflow.db")
    monkeypatch.setenv("DVC_EXP_NAME", "brisk-hare")
    publish_project(project / ".dvc/tmp/exps/tmpabc")
    assert capsys.readouterr() == (
        "MLflow: nothing published from a copy of the project: `dvc exp apply brisk-hare`, then `make publish`\n",
        "",
    )
    assert not list(project.rglob("mlflow.db.lock"))
    publish_project(project)  # the workspace, in which DVC runs an experiment too
    assert capsys.readouterr().out.startswith("MLflow: 2 created, ")


@pytest.mark.parametrize("call", ["create_run", "log_artifact", "set_terminated"])
def test_a_full_disk_is_a_warning_and_the_next_attempt_publishes_everything(
    call: str, project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_database, project / "mlflow.db")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"mlflow.MlflowClient.{call}", full)
        publish_project(project)
    assert capsys.readouterr() == (
        "",
        f"warning: MLflow at sqlite:///{project}/mlflow.db cannot be used: [Errno 28] No space left on device. "
        "Nothing is lost: `make publish` delivers the runs later\n",
    )
    publish_project(project)
    assert capsys.readouterr().out.startswith("MLflow: 2 created, 0 replaced")


@pytest.mark.usefixtures("empty_database")  # without MLflow there is another message
def test_a_server_that_is_away_is_a_warning_and_not_a_failure(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard service: nobody runs it
    publish_project(project)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("warning: MLflow at http://127.0.0.1:9 cannot be used: ")
    assert printed.err.endswith("Nothing is lost: `make publish` delivers the runs later\n")
    assert printed.err.count("\n") == 1


def test_a_damaged_network_is_a_warning(
    project: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_database, project / "mlflow.db")
    run = paper_run(project)
    for path in (run.network, run.dataset):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing")
    publish_project(project)
    printed = capsys.readouterr()
    assert printed.out.startswith("MLflow: 2 created, ")
    assert printed.err.startswith("warning: the network of paper cnn1 k=1 is not in MLflow: ")
    assert "images.safetensors is damaged" in printed.err


def test_a_live_run_shows_what_the_published_run_will(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(publishing, "LiveRun", lambda *arguments, **options: shown.extend([*arguments, options]))
    result = result_of(project)
    live_run(result.run, fresh=False, tell=print)
    uri, key, name, tags, params, options = shown
    run = tracked_run(result)
    assert (uri, key, name, tags) == (f"sqlite:///{project.resolve()}/mlflow.db", run.key, run.name, run.tags)
    assert params.items() <= run.params.items()
    assert options == {"fresh": False, "tell": print}
