"""Draws the figures of one network, all k and seeds of the grid together, and writes the tables behind them.

reads:   metrics/<profile>/<model>-<k>-<seed>/ of every k and seed in the grid; energy in params.yaml
writes:  plots/<profile>/<model>/ accuracy_speed, sparsity, sops, frontier, layers, settling, energy and training as
         .png and .svg; steps.csv (by simulation step), layers.csv (by layer, after the last step), stops.csv (where
         to stop, for how much accuracy), training.csv (by epoch), runs.csv (the network's runs), sources.csv (SHA-256
         of every result file that went in)
"""

from pathlib import Path

from quantspike import cli, tables
from quantspike.figures import FIGURES, compare_results, save
from quantspike.params import Params
from quantspike.paths import chains, plots_folder
from quantspike.results import read_all


def main(params: Params, root: Path, profile: str, model: str) -> None:
    grid = [chain for chain in chains(params, root) if (chain.profile, chain.model) == (profile, model)]
    results = read_all(grid, params)
    folder = plots_folder(profile, model, root)
    for name, table in tables.TABLES.items():
        tables.write_table(folder / f"{name}.csv", table(results))
    comparison = compare_results(results, params.energy)
    for name, draw in FIGURES.items():
        save(draw(comparison), folder, name)


if __name__ == "__main__":
    cli.stage(main, __doc__, "profile", "model")
