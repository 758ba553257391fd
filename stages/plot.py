"""Draw the figures of one network, all k and seeds of the grid together, and note what they were made from.

reads:   metrics/<profile>/<model>-<k>-<seed>/ of every run in the grid; energy in params.yaml
writes:  plots/<profile>/<model>/: eight figures as .png and .svg; sources.csv (SHA-256 of every result file)
"""

from pathlib import Path

from quantspike.params import Params
from quantspike.paths import grid_runs, plots_folder
from quantspike.reporting.figures import FIGURES
from quantspike.reporting.figures.comparison import compare_results
from quantspike.reporting.figures.style import save
from quantspike.reporting.results import read_all
from quantspike.reporting.tables import sources_table, write_table
from quantspike.workflow import cli


def main(params: Params, root: Path, profile: str, model: str) -> None:
    results = read_all([run for run in grid_runs(params, root) if (run.profile, run.model) == (profile, model)])
    folder = plots_folder(profile, model, root)
    comparison = compare_results(results, params.energy)
    for name, draw in FIGURES.items():
        save(draw(comparison), folder, name)
    write_table(folder / "sources.csv", sources_table(results))


if __name__ == "__main__":
    cli.stage(main, __doc__, "profile", "model")
