"""Where the files of a run lie, and which runs there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Edit
from quantspike.errors import QuantspikeError
from quantspike.params import load_params
from quantspike.paths import dataset_file, find_run, grid_runs, plots_folder, project_root


def test_every_file_lies_in_a_folder_named_after_its_run(write_params: Edit) -> None:
    run = find_run(load_params(write_params()), "tiny", "small", 2, 7, Path("project"))
    assert (run.name, run.key, run.layers) == ("small-2-7", "tiny-small-2-7", "8C3-P2-16C3-P2-16")
    assert run.dataset == dataset_file("tiny", Path("project")) == Path("project/data/tiny/images.safetensors")
    assert run.network == Path("project/data/tiny/small-2-7/finetune.safetensors")
    assert run.scores == Path("project/data/tiny/small-2-7/evaluate.safetensors")
    assert run.integer_network == Path("project/data/tiny/small-2-7/convert.safetensors")
    assert run.logs == Path("project/metrics/tiny/small-2-7/logs/k2")
    assert run.resume == Path("project/data/resume/tiny-small-2-7")
    assert run.baseline.network == Path("project/data/tiny/small-fp32-7/baseline.safetensors")
    assert plots_folder("tiny", "small", Path("project")) == Path("project/plots/tiny/small")
    assert dataset_file("tiny") == Path("data/tiny/images.safetensors")


def test_the_grid_has_a_baseline_for_each_seed_and_the_order_of_the_params_file(
    write_params: Edit, tmp_path: Path
) -> None:
    runs = grid_runs(load_params(write_params({"grid.k": [2, 0], "grid.seed": [7, 1]})), tmp_path)
    names = ["small-fp32-7", "small-fp32-1", "small-2-7", "small-2-1", "small-0-7", "small-0-1"]
    assert [run.name for run in runs] == names
    assert {run.root for run in runs} == {tmp_path}
    assert all(run.settings.width == 0.5 for run in runs)


@pytest.mark.parametrize(
    ("clip", "k", "message"),
    [
        (2.75, 1, "is 2.75, but with k = 1 activations are multiples of 0.5 and a clip is one of them up to 511"),
        (0.5, 0, "is 0.5, but with k = 0 activations are multiples of 1 and a clip is one of them up to 1022"),
        (1023, 0, "is 1023, but"),  # 2^20 x 1024 = 2^30
        (256, 2, "is 256, but with k = 2 activations are multiples of 0.25 and a clip is one of them up to 255.5"),
    ],
)
def test_a_clip_that_cannot_be_counted_in_steps_is_refused_for_every_run(
    clip: float, k: int, message: str, write_params: Edit
) -> None:
    params = load_params(write_params({"profiles.tiny.recipe.clip": clip, "grid.k": [k]}))
    with pytest.raises(QuantspikeError, match=rf"^profiles\.tiny\.recipe\.clip {message}"):
        grid_runs(params)
    assert find_run(params, "tiny", "small", "fp32", 0, Path()).settings.recipe.clip == clip


def test_a_clip_of_the_largest_count_is_allowed(write_params: Edit) -> None:
    # 2^20 x (1022 + 1) is just below 2^30.
    params = load_params(write_params({"profiles.tiny.recipe.clip": 511, "grid.k": [1]}))
    assert len(grid_runs(params)) == 2


def test_no_two_runs_share_a_folder(write_params: Edit) -> None:
    changes = {"models.small_1": {"layers": "8C3-16"}, "grid.model": ["small", "small_1"]}
    runs = grid_runs(load_params(write_params(changes | {"grid.k": [0, 1, 10], "grid.seed": [0, 1, 10]})))
    assert len({run.metrics for run in runs}) == len({run.key for run in runs}) == len(runs) == 2 * 4 * 3


@pytest.mark.parametrize("copy", ["tmp1a2b", "standalone/tmp1a2b", "tmp1a2b/sub/folder"])
def test_a_copy_that_dvc_makes_for_an_experiment_belongs_to_its_project(
    copy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".dvc/tmp/exps" / copy
    folder.mkdir(parents=True)
    assert project_root(folder) == tmp_path
    monkeypatch.chdir(folder)
    assert project_root(Path()) == tmp_path


def test_any_other_folder_is_a_project_of_its_own(tmp_path: Path) -> None:
    for root in (Path(), tmp_path, tmp_path / ".dvc/tmp", tmp_path / ".dvc/tmp/exps"):
        assert project_root(root) == root
