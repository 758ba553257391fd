"""Put all results of the grid into the summary tables and bring MLflow in line with them.

Runs that are not finished are named and left out. The files are the truth: a lost MLflow database is rebuilt by
running this script again. QUANTSPIKE_TRACKING=off leaves MLflow alone; MLFLOW_TRACKING_URI names another store than
mlflow.db.

reads:   metrics/<profile>/<model>-<k>-<seed>/ and plots/<profile>/<model>/ of the whole grid
writes:  metrics/summary.csv, .md and .tex (a row per network and k), metrics/runs.csv (a row per run); runs in MLflow
"""

from pathlib import Path

from quantspike.params import Params
from quantspike.paths import grid_runs
from quantspike.reporting.results import read_finished
from quantspike.reporting.summary import write_summary
from quantspike.workflow import cli
from quantspike.workflow.publishing import publish_results


def main(params: Params, root: Path) -> None:
    results = read_finished(grid_runs(params, root))
    write_summary(results, root / "metrics")
    publish_results(results, root)


if __name__ == "__main__":
    cli.stage(main, __doc__)
