"""Draws the figures of one network, all k and seeds of the grid together, and writes the tables behind them.

reads:   metrics/<profile>/<model>-<k>-<seed>/ of every k and seed in the grid
writes:  plots/<profile>/<model>/ accuracy_speed, sparsity and sops as .png and .svg,
         steps.csv (by simulation step), training.csv (by epoch), runs.csv (the network's rows of the summary),
         sources.csv (SHA-256 of every result file that went in)
"""

from pathlib import Path

from quantspike import cli, figures
from quantspike.params import Params
from quantspike.paths import chains, plots_folder
from quantspike.results import read_all
from quantspike.tables import sources_table, steps_table, summary_table, training_table, write_table


def main(params: Params, root: Path, profile: str, model: str) -> None:
    grid = [chain for chain in chains(params, root) if (chain.profile, chain.model) == (profile, model)]
    results = read_all(grid, params)
    folder = plots_folder(profile, model, root)
    write_table(folder / "steps.csv", steps_table(results))
    write_table(folder / "training.csv", training_table(results))
    write_table(folder / "runs.csv", summary_table(results))
    write_table(folder / "sources.csv", sources_table(results))
    figures.save(figures.accuracy_speed(results), folder, "accuracy_speed")
    figures.save(figures.sparsity(results), folder, "sparsity")
    figures.save(figures.sops(results), folder, "sops")


if __name__ == "__main__":
    cli.stage(main, __doc__, "profile", "model")
