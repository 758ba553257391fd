"""Kills trainings with `kill -9` at random moments, again and again, and compares what they end in.

Stages run as people run them, `python stages/train.py ...`, on handwritten digits with the `demo` profile of
params.yaml: once undisturbed, and once killed N times, half of them in `train` and half in `finetune`. Four of five
kills come at a random moment of the work, from when the process has read a state or written its first one; every
fifth comes at a random moment of the start. Whenever a stage reaches its end before the moment it was to be killed,
its results are compared, deleted, and it begins anew. Each kill is a line: when it came, counted from the start of
the process; where that process had gone on; and the states that it left (epoch/step), besides files half written.
The last line says whether weights and curves, but for their seconds, are equal to the last bit; if not, the exit
status is 1.

    OMP_NUM_THREADS=1 python benchmarks/kills.py --kills 30
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from quantspike.paths import Chain

ROOT = Path(__file__).parents[1]
PHASES = ("train", "finetune")


@dataclass
class Life:
    """One process of a stage.

    Attributes:
        killed: whether it was killed before its end.
        seconds: how long it lived.
        began: seconds until it had read a state or written its first one, None if it never had.
        output: what it said.
    """

    killed: bool
    seconds: float
    began: float | None
    output: str


def main() -> None:
    options = _options()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = (_project(Path(folder, name), options) for name in ("undisturbed", "killed"))
        equal = True
        for index, phase in enumerate(PHASES):
            whole = _live(phase, undisturbed)
            print(
                f"{phase}: undisturbed, {whole.began:.1f} s to its first state, {whole.seconds:.1f} s in all",
                flush=True,
            )
            kills = (options.kills + 1 - index) // 2
            equal &= _kill(phase, kills, whole, undisturbed, killed, random.Random(options.seed + index))
    print(f"weights equal: {'yes' if equal else 'no'}")
    sys.exit(not equal)


def _kill(phase: str, kills: int, whole: Life, undisturbed: Chain, chain: Chain, moments: random.Random) -> bool:
    """Runs a stage until it was killed so many times and has ended after that; whether each end was the same."""
    assert whole.began is not None
    done, equal = 0, True
    while True:
        before = _states(phase, chain)
        if done == kills:
            life = _live(phase, chain)
        elif done % 5 == 4:
            life = _live(phase, chain, seconds=moments.uniform(0, whole.began))
        else:
            life = _live(phase, chain, work=moments.uniform(0, (whole.seconds - whole.began) / 5))
        where = _where(life, before)
        if life.killed:
            done += 1
            half = len(list(chain.resume.glob(".*")))
            left = ", ".join(_states(phase, chain)) or "none"
            print(
                f"kill {done:3} of {phase}: after {life.seconds:5.2f} s; {where}; states left: {left}; "
                f"half written: {half}",
                flush=True,
            )
            continue
        same = _results(phase, chain) == _results(phase, undisturbed)
        equal &= same
        print(f"{phase}: reached its end; {where}; equal to the undisturbed run: {'yes' if same else 'no'}", flush=True)
        if done == kills:
            return equal
        (chain.data / f"{phase}.safetensors").unlink()


def _live(phase: str, chain: Chain, seconds: float = math.inf, work: float = math.inf) -> Life:
    """Runs a stage to its end, or kills it after some time since its start, or since the start of its work."""
    command = [sys.executable, str(ROOT / "stages" / f"{phase}.py"), "--profile", chain.profile]
    command += ["--model", chain.model, "--k", str(chain.k), "--seed", str(chain.seed)]
    log, errors = chain.root / "stdout.txt", chain.root / "stderr.txt"
    before, start, began = _states(phase, chain), time.perf_counter(), None
    with log.open("w") as output, errors.open("w") as complaints:
        process = subprocess.Popen(command, cwd=chain.root, stdout=output, stderr=complaints)
        while process.poll() is None:
            now = time.perf_counter() - start
            if began is None and (log.stat().st_size or _states(phase, chain) != before):
                began = now
            if now >= min(seconds, math.inf if began is None else began + work):
                process.kill()
                process.wait()
                break
            time.sleep(0.002)
    if process.returncode not in (0, -9) or errors.read_text():
        sys.exit(f"{phase} failed with status {process.returncode}: {errors.read_text()}")
    return Life(process.returncode != 0, time.perf_counter() - start, began, log.read_text())


def _where(life: Life, before: list[str]) -> str:
    """Where a process went on."""
    if match := re.match(r"goes on (.*)", life.output):
        return f"went on {match[1]}"
    if before:
        return "killed before it had read the state"
    return "began with the first step" if life.output else "had no state to go on from"


def _states(phase: str, chain: Chain) -> list[str]:
    """The states there are, from the oldest to the newest, as epoch/step."""
    names = [path.stem.split("-") for path in sorted(chain.resume.glob(f"{phase}-*.safetensors"))]
    return [f"{int(epoch)}/{int(step)}" for *_, epoch, step in names]


def _results(phase: str, chain: Chain) -> tuple[bytes, list[dict[str, str]]]:
    """Weights, and the curve without its seconds."""
    with (chain.metrics / f"{phase}.csv").open(newline="") as file:
        curve = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return (chain.data / f"{phase}.safetensors").read_bytes(), curve


def _project(folder: Path, options: argparse.Namespace) -> Chain:
    """A folder with params and images."""
    folder.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    profile = params["profiles"]["demo"]
    profile["train"]["epochs"] = options.epochs
    profile["finetune"]["epochs"] = options.epochs
    params |= {"device": options.device, "launch": "python", "checkpoint_minutes": options.checkpoint_seconds / 60}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "stages" / "download.py"), "--profile", "demo"], cwd=folder, check=True)
    return Chain("demo", options.model, options.k, 0, folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="in both phases together (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of each phase (default: %(default)s)")
    parser.add_argument("--model", default="cnn1", help="network, as named in params.yaml (default: %(default)s)")
    parser.add_argument("--k", type=int, default=2, help="precision of the activations (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="as in params.yaml (default: %(default)s)")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=0.5, help="longest time between states (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
