"""Kill stages, dvc and their whole group at random moments of the demo, and check that the next `dvc repro` recovers.

    python benchmarks/kills.py --kills 100 --json kills.json

Works in a temporary clone of the last commit with one run of the demo (CNN 1, k = 1). A round deletes all outputs and
DVC's caches, starts `dvc repro`, kills it up to five times within the first seconds of stages drawn at random, each
time starting it again, and then lets it finish. It must finish, every result file must have the bytes of the
undisturbed run, no half-written file may be left, and no process may outlive a kill by a minute; else the exit status
is 1.

DVC itself writes dvc.lock in place, so a kill can leave that file cut. It is then deleted, as docs/reliability.md
advises, and counted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from tqdm import tqdm
from voluptuous import Invalid

from common import CPU, at_least, machine, new_parser, report
from quantspike.errors import QuantspikeError
from quantspike.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]

KINDS = ("stage", "dvc", "group")

STAGES = ("download", "baseline", "train", "finetune", "evaluate", "convert", "simulate", "plot", "publish")

SECONDS = 5.0
"""A kill comes so long after the start of its stage, at most."""

KILLS_IN_A_ROUND = 5

PATIENCE = 60.0
"""Seconds after which a process that should be gone counts as an orphan."""


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=at_least(1), default=100, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the moments (default: %(default)s)")
    result = report(measure, parser.parse_args())
    sys.exit(bool(sum(result["wrong"].values())))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return how many kills hit which stage, and what went wrong after them."""
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        finish(project)
        expected = results(project)
        hit, wrong, cut_locks, slowest = Counter[str](), Counter[str](), 0, 0.0
        progress = tqdm(total=options.kills, disable=None, unit="kill")
        while (left := options.kills - hit.total()) > 0:  # a hidden bar does not count
            clear(project)
            targets = moments.choices(range(len(STAGES)), k=min(KILLS_IN_A_ROUND, left))
            try:
                for target in sorted(targets):  # stages that are done do not run again
                    delay, kind = moments.uniform(0, SECONDS), moments.choice(KINDS)
                    killed = kill(project, STAGES[target], delay, kind)
                    if killed is None:  # all stages were done before
                        break
                    what, seconds, orphans = killed
                    hit[what] += 1
                    wrong["orphans"] += orphans
                    slowest = max(slowest, seconds)
                    cut_locks += delete_cut_lock(project)
                    progress.update()
                finish(project)
            except QuantspikeError as error:  # the finding that is looked for: the counts so far must not be lost
                progress.write(str(error), file=sys.stderr)
                wrong["dvc repro that failed"] += 1
                break
            found = results(project)
            wrong["files that differ"] += len(dict(found.items() ^ expected.items()))
            wrong["half-written files"] += sum(1 for name in (".*.part", ".tmp??????") for _ in project.rglob(name))
        progress.close()
    return {
        "machine": machine(CPU),
        "n": {"kills": hit.total(), "result_files": len(expected)},
        "kills": dict(sorted(hit.items())),
        "seconds until all processes were gone, at most": slowest,
        "dvc.lock cut by DVC": cut_locks,
        "wrong": dict(wrong),
    }


def make_project(project: Path) -> Path:
    """Clone the last commit, and leave one run of the demo in its grid."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["grid"] = {"profile": ["demo"], "model": ["cnn1"], "k": [1], "seed": [0]}
    path.write_text(yaml.safe_dump(params))
    clear(project)
    return project


def clear(project: Path) -> None:
    """Delete every output, the states of trainings, and what DVC knows of them."""
    for name in ("data", "metrics", "plots", "dvc.lock", ".dvc/cache", ".dvc/tmp", "mlflow.db", "mlartifacts"):
        shutil.rmtree(project / name) if (project / name).is_dir() else (project / name).unlink(missing_ok=True)


def results(project: Path) -> dict[str, str]:
    """Return the SHA-256 of every result file by its path."""
    return {
        str(path.relative_to(project)): file_sha256(path)
        for folder in ("metrics", "plots")
        for path in sorted((project / folder).rglob("*"))
        if path.is_file()
    }


def start_repro(project: Path) -> subprocess.Popen[bytes]:
    """Start `dvc repro` in a session of its own."""
    # A user's own MLflow is not for this.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(project / "src")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "dvc", "repro"]
    # A file, since a pipe would be waited for until the last process that writes to it has ended.
    with (project.parent / "output").open("w") as output:
        return subprocess.Popen(
            command, cwd=project, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )


def finish(project: Path) -> None:
    """Run `dvc repro` to its end.

    Raises:
        QuantspikeError: it failed.
    """
    process = start_repro(project)
    process.wait()
    check_finished(project, process)


def check_finished(project: Path, process: subprocess.Popen[bytes]) -> None:
    """Check that a `dvc repro` that has ended did not fail.

    Raises:
        QuantspikeError: it failed.
    """
    if process.returncode:
        output = (project.parent / "output").read_text()
        raise QuantspikeError(f"dvc repro failed with status {process.returncode}:\n{output}")


def kill(project: Path, stage: str, delay: float, kind: str) -> tuple[str, float, int] | None:
    """Start `dvc repro`, kill a part of it some seconds after a stage has started, and wait until all of it has ended.

    Returns:
        What was killed during which stage, the seconds until all processes were gone, and how many of them were still
        alive after `PATIENCE`. None if all had ended before the kill.

    Raises:
        QuantspikeError: `dvc repro` failed before the kill.
    """
    process = start_repro(project)
    while process.poll() is None and stage not in map(stage_of, children(process)):
        time.sleep(0.02)
    time.sleep(delay)
    if process.poll() is not None:
        check_finished(project, process)
        return None
    family = children(process)
    stages = {child: stage for child in family if (stage := stage_of(child))}
    if kind == "stage" and not stages:
        kind = "dvc"
    if kind == "stage":
        try:
            next(iter(stages)).kill()
        except psutil.NoSuchProcess:  # it has just ended
            process.wait()
            check_finished(project, process)
            return None
    elif kind == "dvc":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    start = time.monotonic()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=PATIENCE)
    seconds = time.monotonic() - start
    alive = [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    for child in alive:
        child.kill()
    return f"{kind} during {next(iter(stages.values()), 'no stage')}", seconds, len(alive)


def delete_cut_lock(project: Path) -> bool:
    """Delete dvc.lock if DVC was killed while it wrote it and refuses it now; return whether that was so."""
    path = project / "dvc.lock"
    if not path.exists():
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, Invalid, UnicodeError):
        path.unlink()
        return True
    return False


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that a process has started, and those that they have; none if it has ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def stage_of(process: psutil.Process) -> str | None:
    """Return the name of the stage that a process runs."""
    try:
        scripts = [Path(word) for word in process.cmdline() if word.startswith("stages/")]
    except psutil.Error:
        return None
    return scripts[0].stem if scripts else None


if __name__ == "__main__":
    main()
