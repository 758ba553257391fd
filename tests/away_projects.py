"""Projects for the tests of results made elsewhere: this one's files, with stages that write something at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from quantspike.away.running import Job, order
from quantspike.params import load_params
from quantspike.paths import Chain

PROJECT = Path(__file__).parents[1]

STAGE = '''
"""Stands in for every stage: notes that it ran, then writes what the stage would; `train` waits if it is told to."""

import argparse, json, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--params", default="params.yaml")
for name in ("profile", "model", "k", "seed"):
    parser.add_argument(f"--{name}")
options = parser.parse_args()
root, stage = Path(options.params).parent, Path(sys.argv[0]).stem
chain = f"{options.model}-{options.k or 'fp32'}-{options.seed}"
data, metrics = root / "data" / options.profile / chain, root / "metrics" / options.profile / chain
state = root / "data" / "resume" / f"{options.profile}-{chain}"
project = Path(__file__).parents[1]

with (project / "ran.txt").open("a") as file:
    file.write(f"{stage} {options.profile if stage == 'download' else chain}\\n")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if (project / "fails.txt").exists() and (project / "fails.txt").read_text() == f"{stage} {chain}":
    write(metrics / "train.csv", "half")
    sys.exit("error: told to fail")
if stage == "train" and (project / "slow.txt").exists() and not state.exists():
    signal.signal(signal.SIGTERM, lambda number, frame: (write(state, "state"), sys.exit(143)))
    write(metrics / "train.csv", "half")
    write(metrics / ".train.csv.x1y2.csv", "half")
    write(project / "waits.txt", str(os.getpid()))
    time.sleep(60)
if stage == "download":
    write(root / "data" / options.profile / "images.safetensors", (project / "images.txt").read_text())
elif stage == "pretrain":
    write(data / "pretrain.safetensors", "no network")
    write(metrics / "pretrain.csv", "epoch,test_accuracy\\n")
elif stage in ("train", "finetune"):
    write(data / f"{stage}.safetensors", f"weights of {chain} after {stage}")
    accuracy = (project / "accuracy.txt").read_text()
    write(metrics / f"{stage}.csv", f"epoch,test_accuracy\\n1,{accuracy}\\n")
elif stage == "evaluate":
    write(data / "evaluate.safetensors", "scores")
    made_with = {"settings": {}, "arithmetic": "bf16", "device": "some GPU", "processes": 1, "torch": "2.11"}
    write(metrics / "ann.json", json.dumps({"accuracy": 0.5, "made_with": made_with}))
elif stage == "convert":
    write(data / "integer" / "network.safetensors", f"integers of {chain}")
    write(metrics / "conversion.json", json.dumps({"converted": True}))
elif stage == "simulate":
    for name in ("b.txt", "a/c.txt", "a.txt"):
        write(metrics / "logs" / name, f"{name} of {chain}")
    for name in ("metrics.json", "certificate.json", "snn.json"):
        write(metrics / name, json.dumps({"chain": chain}))
    for name in ("snn.csv", "layers.csv"):
        write(metrics / name, "step,accuracy,synops\\n1,0.5,2\\n")
'''

PARAMS: dict[str, Any] = {
    "run": {"profile": ["demo"], "model": ["small", "large"], "k": ["fp32", 1], "seed": [0]},
    "models": {"small": {"layers": "8C3-P2-16"}, "large": {"layers": "32C3-P2-64"}},
    "profiles": {
        "demo": {
            "data": {"source": "digits", "crop": 8},
            "width": 1.0,
            "pretrain": {"epochs": 0},
            "train": {"epochs": 1, "learning_rate": 0.003, "batch_size": 50, "flip": False},
            "finetune": {"epochs": 1, "learning_rate": 0.0003},
            "convert": {"weight_bits": 12},
            "simulate": {"steps": 20, "settle_limit": 200, "batch_size": 100, "log_batch": 100},
        }
    },
    "energy": {},
    "device": "cpu",
}


def make_project(folder: Path) -> Path:
    """A project whose stages are quick; for the rest it is this one."""
    (folder / "stages").mkdir(parents=True)
    for stage in (PROJECT / "stages").glob("*.py"):
        (folder / "stages" / stage.name).write_text(STAGE)
    shutil.copytree(PROJECT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(PROJECT / ".dvc" / "plots", folder / ".dvc" / "plots")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / "images.txt").write_text("images")
    (folder / "accuracy.txt").write_text("0.5")
    return folder


def make_job(project: Path, minutes: float = 1.0, **options: Any) -> Job:
    """A piece of work in a project, with folders of its own below build/."""
    params_file = project / "params.yaml"
    folders = {"work": project / "build" / "away", "out": project / "build" / "packs"}
    return Job(params=load_params(params_file), params_file=params_file, minutes=minutes, **(folders | options))


def grid(project: Path, k: tuple[Any, ...] = (1, "fp32")) -> list[Chain]:
    """Both networks in each of some precisions."""
    return order("demo", ["small", "large"], k, [0], project / "build" / "away")


def ran(project: Path) -> list[str]:
    """The stages that have run, in order, such as `train small-1-0`."""
    path = project / "ran.txt"
    return path.read_text().splitlines() if path.exists() else []
