"""The plot stage: its files are those that DVC expects, and DVC watches all that they are made from."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import yaml

from draw_figures import DIGITS, PRETRAINED, SHORT, make_project
from make_results import make_chain, make_params
from quantspike.errors import QuantspikeError
from quantspike.figures import FIGURES
from quantspike.palette import color_of
from quantspike.params import LARGEST_K, Precision
from quantspike.paths import chains
from quantspike.results import read_all, result_files
from quantspike.tables import TABLES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "quantspike"
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
FOLDER = "plots/${item.profile}/${item.model}/"

UNWATCHED = {
    "__init__.py": "a version",
    "errors.py": "an exception",
    "figures/__init__.py": "which figures there are, which dvc.yaml says too",
    "files.py": "how a file is written, not what is in it",
    "logs/__init__.py": "logs of others, which no stage reads",
    "logs/checks.py": "the same",
    "logs/reading.py": "the same",
    "params.py": "DVC compares the values themselves",
    "paths.py": "where files lie",
    "recipes.py": "words of the summary",
}
"""Modules that cannot change what is drawn, and what they are about."""


def plot_stage() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "stages" / "plot.py")))


def draw(root: Path) -> Path:
    """Runs the stage on made-up results of a small network; gives the folder that it fills."""
    params = make_project(root, k=("fp32", 1), steps=5, **DIGITS, **SHORT)
    plot_stage().main(params, root, "paper", "cnn1")
    return root / "plots" / "paper" / "cnn1"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("project"))


# What it writes


def test_the_stage_writes_every_figure_twice_and_every_table(drawn: Path) -> None:
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in drawn.iterdir()} == figures | {f"{name}.csv" for name in TABLES}
    assert (len(FIGURES), len(TABLES)) == (8, 6)


def test_the_stage_writes_exactly_what_dvc_expects_of_it(drawn: Path) -> None:
    declared = [name_of(entry) for entry in (*STAGES["plot"]["plots"], *STAGES["plot"]["outs"])]
    assert sorted(declared) == sorted(f"{FOLDER}{path.name}" for path in drawn.iterdir())


def name_of(entry: str | dict[str, Any]) -> str:
    """The path of an output in dvc.yaml, with or without settings."""
    return entry if isinstance(entry, str) else next(iter(entry))


def test_the_docstring_of_the_stage_names_every_figure_and_table() -> None:
    told = (ROOT / "stages" / "plot.py").read_text().split('"""')[1]
    assert [name for name in FIGURES if name not in told] == []
    assert [name for name in TABLES if f"{name}.csv" not in told] == []


def test_tables_are_those_of_the_results(drawn: Path) -> None:
    lines = {name: len(pd.read_csv(drawn / f"{name}.csv")) for name in TABLES}
    # Of two chains one spikes: 5 steps, 10 layers, 3 losses; 6 + 2 epochs of both; 8 result files of each.
    assert lines == {"steps": 5, "layers": 10, "stops": 3, "training": 16, "runs": 2, "sources": 16}
    assert pd.read_csv(drawn / "runs.csv")["k"].tolist() == ["fp32", "1"]


def test_the_same_results_give_the_same_files_to_the_last_byte_whatever_the_caller_has_set(
    drawn: Path, tmp_path: Path
) -> None:
    theirs = {"font.size": 30, "savefig.dpi": 50, "svg.fonttype": "none", "axes.facecolor": "red", "axes.linewidth": 9}
    with mpl.rc_context(theirs):
        again = draw(tmp_path)
    names = sorted(path.name for path in drawn.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert [name for name in names if (drawn / name).read_bytes() != (again / name).read_bytes()] == []


def test_the_prices_of_params_reach_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_project(tmp_path, k=("fp32",), steps=5, **DIGITS, **SHORT)
    dear = params.model_copy(update={"energy": params.energy.model_copy(update={"fp32_mac": 77.5})})
    captions = []
    stage = plot_stage()
    monkeypatch.setitem(stage.main.__globals__, "save", lambda figure, *_: captions.append(figure.get_supxlabel()))
    stage.main(dear, tmp_path, "paper", "cnn1")
    (caption,) = filter(None, captions)
    assert "multiply-accumulate 77.5 in fp32" in " ".join(caption.split())


def test_the_stage_names_an_unfinished_chain(tmp_path: Path) -> None:
    params = make_params(k=("fp32", 1))
    make_chain(chains(params, tmp_path)[0])
    with pytest.raises(QuantspikeError, match="not finished: paper-cnn1-1-0"):
        plot_stage().main(params, tmp_path, "paper", "cnn1")
    assert not (tmp_path / "plots").exists()


def test_the_stage_refuses_a_network_outside_the_grid(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="holds no such chain"):
        plot_stage().main(make_params(), tmp_path, "paper", "cnn2")


# What DVC watches


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, as paths below the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quantspike":
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            place = name.removeprefix("quantspike").removeprefix(".").replace(".", "/")
            found = [f"{place}.py", f"{place}/__init__.py".removeprefix("/")]
            yield from (one for one in found if name.startswith("quantspike") and (PACKAGE / one).is_file())


def reached_from(*roots: str) -> set[str]:
    """These modules, and all that they import, directly or not."""
    reached, waiting = set(), list(roots)
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += imported(PACKAGE / name)
    return reached


def watched(stage: str) -> list[str]:
    """Files of the package among the dependencies of a stage, as paths below the package."""
    prefix = "src/quantspike/"
    return [name.removeprefix(prefix) for name in STAGES[stage]["deps"] if name.startswith(prefix)]


def test_imports_are_found_where_there_are_some() -> None:
    assert {"figures/comparison.py", "figures/style.py", "operations.py", "palette.py"} <= set(
        imported(PACKAGE / "figures" / "costs.py")
    )
    assert "architecture.py" in reached_from("figures/__init__.py")


def test_dvc_watches_every_module_that_can_change_what_is_drawn() -> None:
    modules = reached_from("figures/__init__.py", "tables.py") - set(UNWATCHED)
    files = {"published.csv", "published_curves.csv", "figures/paper.mplstyle"}
    assert set(watched("plot")) == modules | files
    assert STAGES["plot"]["deps"][0] == "stages/plot.py"


def test_dvc_watches_every_file_of_the_figures() -> None:
    files = {f"figures/{path.name}" for path in (PACKAGE / "figures").iterdir() if path.is_file()}
    assert files - set(UNWATCHED) <= set(watched("plot"))


def test_every_exception_is_a_module_that_figures_or_tables_import() -> None:
    assert set(UNWATCHED) <= reached_from("figures/__init__.py", "tables.py") | {"__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_dvc_watches_is_there_and_named_once(stage: str) -> None:
    assert [name for name in watched(stage) if not (PACKAGE / name).exists()] == []
    assert len(set(STAGES[stage]["deps"])) == len(STAGES[stage]["deps"])


def test_dvc_watches_the_prices() -> None:
    assert "energy" in STAGES["plot"]["params"]
    assert "energy" in yaml.safe_load((ROOT / "params.yaml").read_text())


# How DVC shows it

CHARTS: dict[str, dict[str, str]] = {
    name_of(entry): entry[name_of(entry)]
    for stage in STAGES.values()
    for entry in stage.get("plots", [])
    if name_of(entry).endswith(".csv")
}
"""Settings of every table that DVC draws a chart of, by its path."""

TEMPLATES = {path.stem: path.read_text() for path in (ROOT / ".dvc" / "plots").glob("*.json")}

ANCHORS = {
    "<DVC_METRIC_X>": "x",
    "<DVC_METRIC_Y>": "y",
    "<DVC_METRIC_TITLE>": "title",
    "<DVC_METRIC_DATA>": None,
    "<DVC_METRIC_X_LABEL>": None,
    "<DVC_METRIC_Y_LABEL>": None,
}
"""What DVC puts in, and the setting in dvc.yaml that it takes it from, if any."""


def columns_of(path: str, tmp_path: Path) -> list[str]:
    """Columns of the table that a chart is drawn of."""
    params = make_project(tmp_path, k=(1,), steps=5, **DIGITS, **PRETRAINED)
    grid = chains(params, tmp_path)
    if path.startswith("plots/"):
        return list(TABLES[Path(path).stem](read_all(grid, params)).columns)
    (place,) = [place for place in result_files(grid[0], params.profiles["paper"]) if place.name == Path(path).name]
    return list(pd.read_csv(place).columns)


def values_of(content: Any, key: str | None = None) -> Iterator[str]:
    """All texts in a template, or those under a key."""
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, str) and key in (None, name):
                yield value
            yield from values_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(value, key)


def test_every_template_is_used_and_every_one_that_is_used_is_there() -> None:
    assert {chart["template"] for chart in CHARTS.values() if "template" in chart} == set(TEMPLATES)
    assert len(CHARTS) == 9  # pretrain, train, finetune, snn and layers of a chain; four long tables of a network


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_a_vega_lite_chart_with_the_anchors_of_dvc(name: str) -> None:
    content = json.loads(TEMPLATES[name])
    assert content["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    # DVC hands over the texts of the CSV file: as text, 10 would come before 9.
    parsed = {"layer"} if name == "chain_layers" else {"seed", "layer"} if name == "layers" else {"seed"}
    numbers = {"parse": dict.fromkeys(parsed, "number")}
    assert content["data"] == {"values": "<DVC_METRIC_DATA>", "format": numbers}
    anchors = [value for value in values_of(content) if value.startswith("<")]
    assert {"<DVC_METRIC_DATA>", "<DVC_METRIC_TITLE>", "<DVC_METRIC_X>", "<DVC_METRIC_Y>"} <= set(anchors)
    assert set(anchors) <= set(ANCHORS)


@pytest.mark.parametrize("path", CHARTS)
def test_a_chart_shows_columns_of_its_table(path: str, tmp_path: Path) -> None:
    chart, columns = CHARTS[path], columns_of(path, tmp_path)
    assert chart["x"] in columns
    assert chart["y"] in columns
    assert chart["title"]
    if "template" in chart:
        fields = set(values_of(json.loads(TEMPLATES[chart["template"]]), "field"))
        # DVC adds the revision.
        named = fields - {"<DVC_METRIC_X>", "<DVC_METRIC_Y>", "rev"}
        assert len(named) > 0
        assert named - set(columns) == set()


@pytest.mark.parametrize("path", [path for path in CHARTS if path.startswith("plots/")])
def test_a_chart_of_several_k_tells_them_apart_and_the_seeds_too(path: str) -> None:
    fields = set(values_of(json.loads(TEMPLATES[CHARTS[path]["template"]]), "field"))
    assert {"k", "seed", "rev"} <= fields


def objects_of(content: Any, key: str) -> Iterator[Any]:
    """All that stands under a key of a template, at any depth."""
    if isinstance(content, dict):
        if key in content:
            yield content[key]
        for value in content.values():
            yield from objects_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from objects_of(value, key)


@pytest.mark.parametrize(("name", "panels"), [("layers", 1), ("steps", 2), ("stops", 1), ("training", 1)])
def test_a_chart_of_several_k_has_the_colours_of_the_figures(name: str, panels: int) -> None:
    grid: list[Precision] = ["fp32", *range(LARGEST_K + 1)]
    scale = {"domain": [str(k) for k in grid], "range": [color_of(k) for k in grid]}
    colors = list(objects_of(json.loads(TEMPLATES[name]), "color"))
    assert colors == [{"field": "k", "type": "nominal", "title": "k", "scale": scale}] * panels


def test_only_the_layers_of_one_chain_are_coloured_otherwise() -> None:
    coloured = {
        name: set(values_of(list(objects_of(json.loads(text), "color")), "field")) for name, text in TEMPLATES.items()
    }
    assert coloured == {name: {"layer"} if name == "chain_layers" else {"k"} for name in TEMPLATES}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_line_has_no_points_at_its_steps(name: str) -> None:
    marks = list(objects_of(json.loads(TEMPLATES[name]), "mark"))
    assert len(marks) == (2 if name == "steps" else 1)
    assert all("point" not in mark for mark in marks)


def test_layers_stand_side_by_side_in_the_order_of_their_numbers() -> None:
    content = json.loads(TEMPLATES["layers"])
    assert content["encoding"]["x"]["type"] == "ordinal"
    assert content["data"]["format"]["parse"]["layer"] == "number"
    assert {chart["x"] for chart in CHARTS.values() if chart.get("template") == "layers"} == {"layer"}
