"""Puts the results so far into README.md, between two markers: `python -m quantspike.readme`, or `make readme`.

reads:   metrics/<profile>/<model>-<k>-<seed>/ of the whole grid, or of one profile
writes:  README.md, only what stands between its markers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantspike import files
from quantspike.errors import QuantspikeError
from quantspike.params import load_params
from quantspike.paths import chains
from quantspike.results import ChainResult, read_finished
from quantspike.summary import paper_sections

BEGIN = "<!-- results: begin (make readme) -->"
END = "<!-- results: end -->"

# Below the second-level heading that the markers stand under.
_LEVEL = 3


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (default: %(default)s)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file to edit (default: %(default)s)")
    parser.add_argument("--profile", help="only the results of this profile (default: every one with results)")
    options = parser.parse_args()
    try:
        print(update_readme(options.readme, options.params, options.profile))
    except QuantspikeError as error:
        sys.exit(f"error: {error}")


def update_readme(readme: Path, params_file: Path, profile: str | None = None) -> str:
    """Replaces what stands between the markers by the results, and returns a line about it.

    Everything outside the markers stays as it is, byte for byte, and so does the whole file after any error.

    Args:
        readme: the file with the markers.
        params_file: the params file, in the project's folder.
        profile: only the results of this profile; else of every profile of the grid that has any, those beside which
            published figures stand first.

    Raises:
        QuantspikeError: the file or the params cannot be read, a marker is missing or there twice, the profile is not
            in the grid, nothing is finished, or the seeds of a row were run on different images.
    """
    readme = readme.resolve()  # a link stays one
    text = _read(readme)
    _check_markers(text, readme)
    results = _finished(params_file, profile)
    changed = with_results(text, paper_sections(results, _LEVEL))
    names = ", ".join(dict.fromkeys(result.chain.profile for result in results))
    if changed == text:
        return f"{readme} already shows the results of {names}"
    with files.atomic_path(readme) as temporary:
        # Bytes, since text mode would change line ends on some systems.
        temporary.write_bytes(changed.encode("utf-8"))
    return f"{readme} now shows the results of {names}"


def with_results(text: str, results: str) -> str:
    """The text with these lines of Markdown between its markers, which must be there, and with its own line ends."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    block = f"\n\n{results.strip()}\n\n"
    return before + BEGIN + (block.replace("\n", "\r\n") if rest.startswith("\r\n") else block) + END + after


def _read(readme: Path) -> str:
    try:
        return readme.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise QuantspikeError(f"{readme} is not there: name the file to edit with --readme") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QuantspikeError(f"{readme} cannot be read as UTF-8 text: {error}") from error


def _check_markers(text: str, readme: Path) -> None:
    for marker in (BEGIN, END):
        found = text.count(marker)
        if found != 1:
            there = "is not in" if found == 0 else f"is {found} times in"
            raise QuantspikeError(
                f"the line {marker} {there} {readme}: the results go between {BEGIN} and {END}, each there once"
            )
    if text.index(END) < text.index(BEGIN):
        raise QuantspikeError(f"{END} stands before {BEGIN} in {readme}: exchange the two lines")


def _finished(params_file: Path, profile: str | None) -> Sequence[ChainResult]:
    params = load_params(params_file)
    if profile is not None and profile not in params.run.profile:
        raise QuantspikeError(
            f"--profile {profile} is not in the grid: run.profile in {params_file} has {', '.join(params.run.profile)}"
        )
    grid = [chain for chain in chains(params, params_file.parent) if profile in (None, chain.profile)]
    results = read_finished(grid, params)
    if not results:
        of = "" if profile is None else f" of profile {profile}"
        raise QuantspikeError(f"nothing{of} has been finished yet: run `make demo` or `dvc repro` first")
    beside_published = {result.chain.profile for result in results if result.published is not None}
    return sorted(results, key=lambda result: result.chain.profile not in beside_published)


if __name__ == "__main__":
    main()
