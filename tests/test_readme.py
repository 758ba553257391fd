"""The results in README.md, between its markers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from make_results import data_set, make_chain, make_made_with, make_params
from quantspike import readme
from quantspike.errors import QuantspikeError
from quantspike.paths import Chain, chains
from quantspike.readme import BEGIN, END, update_readme, with_results

PROJECT = Path(__file__).parent.parent

BEFORE, AFTER = "# Title\n\nWords, é, trailing blank \n## Results\n", "\n\n## Next\r\nother line ends\n\n\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params of two profiles, nothing finished, and a README without results."""
    content = make_params(k=("fp32", 0)).model_dump(mode="json")
    content["profiles"]["other"] = content["profiles"]["paper"]
    content["run"]["profile"] = ["other", "paper"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    write_readme(tmp_path, f"{BEFORE}{BEGIN}\nNo results yet.\n{END}{AFTER}")
    return tmp_path


def write_readme(project: Path, text: str) -> None:
    (project / "README.md").write_bytes(text.encode())


def finish(project: Path, profile: str) -> None:
    for k in ("fp32", 0):
        make_chain(Chain(profile, "cnn1", k, 0, project))


def update(project: Path, profile: str | None = None) -> str:
    return update_readme(project / "README.md", project / "params.yaml", profile)


def content(project: Path) -> str:
    return (project / "README.md").read_bytes().decode()


def headings(project: Path) -> list[str]:
    return re.findall(r"^#+ .*", content(project), flags=re.MULTILINE)


def test_only_what_stands_between_the_markers_changes(project: Path) -> None:
    finish(project, "paper")
    assert update(project) == f"{project / 'README.md'} now shows the results of paper"
    text = content(project)
    assert text.startswith(BEFORE + BEGIN + "\n\n### Profile `paper`\n\n| model | k | n | ANN (%) | published |")
    assert text.endswith("torch 2.11.0.\n\n" + END + AFTER)
    assert "| cnn1 | 0 | 1 | 92.60 | - | - | 92.64 | 92.64 | +0.00 |" in text
    assert "Made from CIFAR-10 (official archive)" in text
    assert "No results yet" not in text


def test_a_link_stays_one_and_its_file_is_written(project: Path) -> None:
    finish(project, "paper")
    (project / "docs").mkdir()
    (project / "README.md").rename(project / "docs" / "front.md")
    (project / "README.md").symlink_to("docs/front.md")
    update(project)
    assert (project / "README.md").readlink() == Path("docs/front.md")
    assert "### Profile `paper`" in (project / "docs" / "front.md").read_text()


def test_a_second_time_changes_nothing(project: Path) -> None:
    finish(project, "paper")
    update(project)
    before, written = content(project), (project / "README.md").stat().st_mtime_ns
    assert update(project) == f"{project / 'README.md'} already shows the results of paper"
    assert (content(project), (project / "README.md").stat().st_mtime_ns) == (before, written)


def test_all_profiles_with_results_stand_in_the_order_of_the_grid(project: Path) -> None:
    for profile in ("paper", "other"):
        finish(project, profile)
    assert update(project).endswith("now shows the results of other, paper")
    assert headings(project)[2:4] == ["### Profile `other`", "### Profile `paper`"]


def test_results_beside_which_published_figures_stand_come_first(project: Path) -> None:
    for k in ("fp32", 0):
        make_chain(Chain("other", "cnn1", k, 0, project), data_set("digits"))
    finish(project, "paper")
    assert update(project).endswith("now shows the results of paper, other")
    assert headings(project)[2:4] == ["### Profile `paper`", "### Profile `other`"]


def test_one_profile_may_be_chosen_and_replaces_the_others(project: Path) -> None:
    for profile in ("paper", "other"):
        finish(project, profile)
    update(project)
    update(project, "paper")
    assert headings(project)[2:4] == ["### Profile `paper`", "## Next\r"]


def test_line_ends_between_the_markers_are_those_of_the_file() -> None:
    assert with_results(f"a\r\n{BEGIN}\r\nold\r\n{END}\r\n", "x\ny\n") == f"a\r\n{BEGIN}\r\n\r\nx\r\ny\r\n\r\n{END}\r\n"
    assert with_results(f"a\n{BEGIN}\nold\n{END}", "x\ny\n") == f"a\n{BEGIN}\n\nx\ny\n\n{END}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", f"the line {BEGIN} is not in .*README.md: the results go between {BEGIN} and {END}"),
        (BEGIN, f"the line {END} is not in"),
        (END, f"the line {BEGIN} is not in"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"the line {BEGIN} is 2 times in"),
        (f"{BEGIN}\n{END}\n{END}\n", f"the line {END} is 2 times in"),
        (f"{END}\n{BEGIN}\n", f"{END} stands before {BEGIN} in .*README.md: exchange the two lines"),
    ],
    ids=["none", "no end", "no begin", "all twice", "end twice", "exchanged"],
)
def test_markers_that_are_not_there_once_each_are_an_error(project: Path, text: str, message: str) -> None:
    finish(project, "paper")
    write_readme(project, text)
    with pytest.raises(QuantspikeError, match=message.replace("(", r"\(").replace(")", r"\)")):
        update(project)
    assert content(project) == text


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, "nothing has been finished yet: run `make demo` or `dvc repro` first"),
        ("other", "nothing of profile other has been finished yet"),
        ("strong", r"--profile strong is not in the grid: run\.profile in .*params\.yaml has other, paper"),
    ],
)
def test_without_results_the_file_stays_as_it_was(project: Path, profile: str | None, message: str) -> None:
    if profile is not None:
        finish(project, "paper")
    before = content(project)
    with pytest.raises(QuantspikeError, match=message):
        update(project, profile)
    assert content(project) == before


def test_seeds_on_different_images_leave_the_file_as_it_was(project: Path) -> None:
    params = make_params(k=(0,), seed=(0, 1))
    (project / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    for chain, kind in zip(chains(params, project), ("cifar10", "images"), strict=True):
        make_chain(chain, data_set(kind), made_with=make_made_with())
    before = content(project)
    with pytest.raises(QuantspikeError, match="their mean would say nothing"):
        update(project)
    assert content(project) == before


@pytest.mark.parametrize(
    ("text", "message"), [(None, "is not there: name the file to edit with --readme"), (b"\xff", "cannot be read as")]
)
def test_a_file_that_cannot_be_read_is_an_error(project: Path, text: bytes | None, message: str) -> None:
    (project / "README.md").unlink() if text is None else (project / "README.md").write_bytes(text)
    with pytest.raises(QuantspikeError, match=message):
        update(project)


def test_the_command_takes_its_paths_and_prints_errors_without_a_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["readme", "--params", str(project / "params.yaml"), "--readme", str(project / "README.md")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="error: nothing has been finished yet"):
        readme.main()
    finish(project, "other")
    monkeypatch.setattr("sys.argv", [*arguments, "--profile", "other"])
    readme.main()
    assert capsys.readouterr().out == f"{project / 'README.md'} now shows the results of other\n"


def test_the_project_s_own_readme_has_the_markers_under_its_heading() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert f"\n## Results\n\n{BEGIN}\n" in text
