"""Prints the results so far, where the figures lie and how to browse the runs: `python -m quantspike.show`.

reads:   metrics/<profile>/<model>-<k>-<seed>/ of the whole grid, or of one profile
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantspike.errors import QuantspikeError
from quantspike.params import load_params
from quantspike.paths import chains, plots_folder
from quantspike.results import read_finished
from quantspike.summary import console_table


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (default: %(default)s)")
    parser.add_argument("--profile", help="show only the runs of this profile")
    options = parser.parse_args()
    try:
        print(overview(options.params, options.profile))
    except QuantspikeError as error:
        sys.exit(f"error: {error}")


def overview(path: Path, profile: str | None = None) -> str:
    """The table of all finished runs, with the places of what belongs to them.

    Args:
        path: the params file, in the project's folder.
        profile: only the runs of this profile.

    Raises:
        QuantspikeError: the params or a result cannot be read, or nothing has been run yet.
    """
    params, root = load_params(path), path.parent
    grid = [chain for chain in chains(params, root) if profile in (None, chain.profile)]
    results = read_finished(grid, params)
    if not results:
        raise QuantspikeError("nothing has been run yet: `make demo` takes minutes, `dvc repro` runs the whole grid")
    folders = sorted({plots_folder(result.chain.profile, result.chain.model, root) for result in results})
    return "\n".join(
        [
            console_table(results),
            "",
            "Figures:    " + ", ".join(f"{folder}/" for folder in folders),
            f"Tables:     {root / 'metrics' / 'summary.md'} (.csv, .tex)",
            "Runs:       make ui   opens the MLflow UI on http://127.0.0.1:5000",
        ]
    )


if __name__ == "__main__":
    main()
