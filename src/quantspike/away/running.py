"""Chains run on a bare machine, one after the other within a time limit, each packed as soon as it is finished.

The stage scripts do the work, in processes of their own. What they write lies in a working folder outside data/ and
metrics/ of the project, so that nothing here is mistaken for results of DVC. A stage is done if its record says that
its command, params and inputs were those of now and its files are still what it wrote; so the same command goes on
where an earlier one ended.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from quantspike.away.images import bring_images, check_images
from quantspike.away.packing import clear_unfinished, find_pack, find_packs, read_pack, write_pack
from quantspike.away.pipeline import STAGES, FileHash, Stage, hash_path, owner, params_of, stages_of
from quantspike.away.provenance import FILE, Provenance, StageRecord, differences, parse_provenance, record_differences
from quantspike.commits import head_commit
from quantspike.errors import QuantspikeError
from quantspike.files import read_json, write_text
from quantspike.locks import sole_holder
from quantspike.params import Params, Precision
from quantspike.paths import Chain
from quantspike.stopping import StopRequest, stop_requests

GRACE = 30.0
"""Seconds from the request to stop until a stage is killed: time for a training to end its step and save its state."""

_POLL = 0.1
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
"""Exit statuses of a stage that did as it was asked."""

_PR_SET_PDEATHSIG = 1


# Loaded here, since between fork and exec as little as possible may happen.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Job:
    """What is asked of a piece of work.

    Attributes:
        params: all of params.yaml.
        params_file: where it lies, in the project's folder.
        work: folder for what the stages write.
        out: folder for packs.
        minutes: after which nothing runs on, but for what saving takes.
        done: folders with packs of chains that need not run.
        source: archive of images, for a machine that cannot download them.
        commit: of the code, where git cannot tell.
    """

    params: Params
    params_file: Path
    work: Path
    out: Path
    minutes: float
    done: tuple[Path, ...] = ()
    source: Path | None = None
    commit: str | None = None

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.params_file.parent


@dataclass
class Report:
    """What became of the chains, by their keys; `left` is what was not begun or not finished."""

    finished: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class _Cut(Exception):
    """Time is up, or a signal has come; a training has saved its state."""


class _Failed(Exception):
    """A stage has ended with an error of its own, which it has printed."""


def order(
    profile: str, models: Sequence[str], precisions: Sequence[Precision], seeds: Sequence[int], work: Path
) -> list[Chain]:
    """The chains in the order of the options: all networks and k of one seed, then of the next."""
    return [Chain(profile, model, k, seed, work) for seed in seeds for model in models for k in precisions]


def check_profile(params: Params, profile: str) -> None:
    """Makes sure that the chains of a profile stand each on its own.

    Raises:
        QuantspikeError: its k share a pre-trained network, whose weights do not come back: chains that are adopted
            from several machines would not fit together, and no other k could be trained at home.
    """
    if epochs := params.profiles[profile].pretrain.epochs:
        raise QuantspikeError(
            f"profiles.{profile}.pretrain.epochs is {epochs}, but only chains that share no pre-training can be run "
            "elsewhere: set it to 0, or run the profile at home"
        )


def check_code(root: Path) -> None:
    """Makes sure that the code at work is the project's, since that is what the records name.

    Args:
        root: the project's folder.

    Raises:
        QuantspikeError: it is another one.
    """
    here, there = Path(__file__).resolve().parents[2], (root / "src").resolve()
    if here != there:
        raise QuantspikeError(f"this is the code in {here}, not the project's: set PYTHONPATH={there}, or use make")


def run_chains(job: Job, chains: Sequence[Chain], say: Callable[[str], None] = print) -> Report:
    """Runs chains within the time, and packs each that is finished.

    One that the limit cuts leaves no pack; its training has saved its state, from which the next call goes on.

    Args:
        job: what is asked for.
        chains: in order, with the working folder as their root; each once, however often it is named.
        say: is given lines for people to read.

    Raises:
        QuantspikeError: another process works in the folder, the images or files cannot be had, or the profile
            pre-trains.
    """
    for chain in chains:
        check_profile(job.params, chain.profile)
    end = time.monotonic() + job.minutes * 60
    chains, report = list(dict.fromkeys(chains)), Report()
    busy = f"another process works in {job.work} already: wait for it, or name another folder with --work"
    with sole_holder(job.work, busy), stop_requests() as request:
        worker = _Worker(job, request, end, say)
        to_do = list(chains)
        try:
            worker.prepare(chains)
            report.skipped = [chain.key for chain in chains if worker.is_done(chain)]
            to_do = [chain for chain in chains if chain.key not in report.skipped]
            while to_do:
                try:
                    worker.run(to_do[0])
                    report.finished.append(to_do.pop(0).key)
                except _Failed as error:
                    say(f"{to_do[0].key}: {error}")
                    report.failed.append(to_do.pop(0).key)
        except _Cut as cut:
            say(f"{cut}; the same command goes on from there, on this machine")
        report.left = [chain.key for chain in to_do]
    for text, keys in (("failed", report.failed), ("left for another time", report.left)):
        if keys:
            say(f"{text}: {', '.join(keys)}")
    return report


class _Worker:
    """Runs stages for a job until its end."""

    def __init__(self, job: Job, request: StopRequest, end: float, say: Callable[[str], None]) -> None:
        self._job, self._request, self._end, self._say = job, request, end, say

    def prepare(self, chains: Sequence[Chain]) -> None:
        """Gets params and images ready, which all chains of a profile share.

        Raises:
            QuantspikeError: the images cannot be had, or are not those of dvc.lock.
            _Cut: no time was left.
        """
        job = self._job
        find_packs(job.done)  # a folder that is not there is told of before hours of work
        clear_unfinished(job.out)
        write_text(job.work / "params.yaml", job.params_file.read_text(encoding="utf-8"))
        for chain in {chain.profile: chain for chain in chains}.values():
            if bring_images(job.params, chain.profile, job.root, job.work, job.source):
                self._record_file(chain, STAGES[0]).unlink(missing_ok=True)
            try:
                record = self._stage(chain, self._stages(chain)[0], {})
            except _Failed as error:
                raise QuantspikeError(f"there are no images: {error}") from None
            check_images(chain.profile, job.root, record)

    def is_done(self, chain: Chain) -> bool:
        """Whether a chain is packed or adopted already, and was made as it would be now."""
        job = self._job
        adopted = Chain(chain.profile, chain.model, chain.k, chain.seed, job.root).metrics / FILE
        found: list[tuple[str, Provenance]] = []
        if adopted.is_file():
            found.append((str(adopted), parse_provenance(adopted.read_bytes(), str(adopted))))
        for folder in (*job.done, job.out):
            try:
                if parts := find_pack(folder, chain.key):
                    found.append((str(parts[0]), read_pack(parts).provenance))
            except QuantspikeError as error:
                if folder != job.out:
                    raise
                self._say(f"{chain.key}: {error}, or let it be packed again now")
        for place, provenance in found:
            stale = differences(provenance, job.params_file, job.work) or _changed_files(place, provenance, job.root)
            if not stale:
                self._say(f"{chain.key}: done already, see {place}")
                return True
            self._say(f"{chain.key}: {place} was made otherwise ({stale[0]}), so the chain runs again")
        return False

    def run(self, chain: Chain) -> None:
        """Runs the stages of a chain that are not done yet, and packs it.

        Raises:
            _Cut: time is up, or a signal has come.
            _Failed: a stage has failed.
        """
        job = self._job
        records: dict[str, StageRecord] = {}
        written: dict[str, FileHash] = {}
        for stage in self._stages(chain):
            records[stage.name] = self._stage(chain, stage, written)
            written |= records[stage.name].outputs
        provenance = Provenance(
            profile=chain.profile,
            model=chain.model,
            k=chain.k,
            seed=chain.seed,
            commit=job.commit or head_commit(job.root),
            machine=_machine(chain),
            stages=records,
        )
        parts = write_pack(job.out, provenance, job.work)
        size = sum(path.stat().st_size for path in parts)
        self._say(f"{chain.key} is finished: {', '.join(path.name for path in parts)}, {size / 2**20:.1f} MiB")

    def _stages(self, chain: Chain) -> list[Stage]:
        return stages_of(Chain(chain.profile, chain.model, chain.k, chain.seed, self._job.root))

    def _record_file(self, chain: Chain, stage: str) -> Path:
        return self._job.work / "records" / f"{owner(stage, chain)}.{stage}.json"

    def _stage(self, chain: Chain, stage: Stage, written: dict[str, FileHash]) -> StageRecord:
        """The record of a stage, which runs unless it is done already."""
        path = self._record_file(chain, stage.name)
        record = self._done_before(path, stage, written)
        if record is None:
            record = self._run_stage(stage)
            write_text(path, record.model_dump_json(indent=2) + "\n")
        return record

    def _done_before(self, path: Path, stage: Stage, written: dict[str, FileHash]) -> StageRecord | None:
        """A record that says what is so now: of command, params, inputs and outputs."""
        job = self._job
        try:
            record = StageRecord.model_validate_json(path.read_bytes())
            outputs = {output: hash_path(job.work / output) for output in stage.outputs}
        except (OSError, ValueError):
            return None
        same = record.outputs == outputs
        return record if same and not record_differences(record, stage, written, job.params_file, job.work) else None

    def _run_stage(self, stage: Stage) -> StageRecord:
        """Runs a stage to its end, or removes what it wrote; states to go on from stay."""
        job, request, end = self._job, self._request, self._end
        params = params_of(stage, job.work / "params.yaml")  # the stage's, whatever becomes of the project's meanwhile
        inputs = {path: hash_path((job.root if path in stage.code else job.work) / path) for path in stage.inputs}
        _remove_outputs(job, stage)
        started, start = datetime.now(UTC), time.monotonic()
        if request.signal or start >= end:
            raise _Cut(f"no time was left for {stage.address}")
        self._say(f"{stage.address} begins, {(end - start) / 60:.1f} minutes are left")
        status, asked = _watch(_start(job, stage), request, end)
        if status != 0:
            _remove_outputs(job, stage)
            if asked and status in _STOPPED:
                raise _Cut(f"{stage.address} was stopped by {'a signal' if request.signal else 'the limit'}")
            raise _Failed(f"{stage.name} failed with exit status {status}, what it printed tells why")
        return StageRecord(
            command=stage.command,
            params=params,
            inputs=inputs,
            outputs={path: hash_path(job.work / path) for path in stage.outputs},
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - start, 1),
        )


def _machine(chain: Chain) -> dict[str, str | int | float | bool]:
    """Device and versions that the network was trained with, as its results have them."""
    made_with = read_json(chain.metrics / "ann.json")["made_with"]
    return {name: value for name, value in made_with.items() if name != "settings"}


def _start(job: Job, stage: Stage) -> subprocess.Popen[bytes]:
    words = shlex.split(stage.command)
    interpreter = [sys.executable] if words[0] == "python" else [words[0]]
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {
        # Absolute, since the stage runs in the project's folder.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
        "QUANTSPIKE_TRACKING": "off",
    }
    command = [*interpreter, *words[1:], "--params", os.path.abspath(job.work / "params.yaml")]
    sys.stdout.flush()
    try:
        # A session of its own, so that what the stage starts can be killed with it.
        return subprocess.Popen(
            command, cwd=job.root, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
    except OSError as error:
        raise QuantspikeError(f"{stage.address} cannot be started: {error}") from error


def _end_with_parent() -> None:
    """In the child: if this process is killed, the kernel asks the stage to stop (Linux; elsewhere it runs on)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a stage with all that it has started, such as the processes of torchrun."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _changed_files(place: str, provenance: Provenance, root: Path) -> list[str]:
    """What of an adopted chain's files is here, but as something else."""
    if not place.endswith(FILE):
        return []
    outputs = {path: found for record in provenance.stages.values() for path, found in record.outputs.items()}
    own = {path: found for path, found in outputs.items() if path.startswith("metrics/") and (root / path).exists()}
    return [f"{path} is not what it was" for path, found in own.items() if hash_path(root / path) != found]


def _watch(process: subprocess.Popen[bytes], request: StopRequest, end: float) -> tuple[int, bool]:
    """Waits for a process, asks it to stop when time is up or a signal has come, and kills it if it does not.

    Returns:
        Its exit status, and whether it was asked to stop.
    """
    asked: float | None = None
    try:
        while True:
            try:
                return process.wait(_POLL), asked is not None or bool(request.signal)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if asked is None and (request.signal or now >= end):
                asked = now
                process.terminate()
            elif asked is not None and now - asked > GRACE:
                _kill(process)
    finally:
        # A second Ctrl-C leaves nothing at work.
        if process.poll() is None:
            _kill(process)
            process.wait()


def _remove_outputs(job: Job, stage: Stage) -> None:
    """Deletes what a stage writes, half-written files too, as DVC does before a stage runs."""
    for output in stage.outputs:
        path = job.work / output
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
