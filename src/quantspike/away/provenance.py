"""Where results come from: commands, params, code and files of every stage, and whether that is what lies here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from quantspike.away.pipeline import STAGES, FileHash, Stage, hash_path, params_of, stages_of
from quantspike.errors import QuantspikeError
from quantspike.params import Precision
from quantspike.paths import Chain

FILE = "provenance.json"
"""Its name in a pack, and in the folder of a chain's results."""

_ABSENT = "nothing"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageRecord(_Record):
    """A stage as it ran.

    Attributes:
        command: as dvc.yaml has it.
        params: what it read of params.yaml, by dotted name.
        inputs: hashes of what it depended on, by path.
        outputs: hashes of what it wrote, by path.
        started: date and time in UTC.
        seconds: how long the run took that ended it; a training that went on from a state has the time of every
            epoch in its CSV file.
    """

    command: str
    params: dict[str, Any]
    inputs: dict[str, FileHash]
    outputs: dict[str, FileHash]
    started: str
    seconds: float


class Provenance(_Record):
    """All that led to the results of a chain.

    Attributes:
        commit: of the code; `None` if nobody could tell, `-dirty` at its end if the code differed from it.
        machine: device and versions, as the trained network has them.
        stages: by name, in order; all of `pipeline.STAGES` once the chain is finished.
    """

    format: Literal["quantspike-away"] = "quantspike-away"
    version: Literal[1] = 1
    profile: str
    model: str
    k: Precision
    seed: int
    commit: str | None
    machine: dict[str, str | int | float | bool]
    stages: dict[str, StageRecord]

    def chain(self, root: Path) -> Chain:
        """The chain, in a project."""
        return Chain(self.profile, self.model, self.k, self.seed, root)

    @property
    def finished(self) -> bool:
        """Whether all stages are there."""
        return tuple(self.stages) == STAGES


def parse_provenance(text: str | bytes, place: str) -> Provenance:
    """Reads what `model_dump_json` wrote.

    Args:
        text: JSON.
        place: where it was found, for the message.

    Raises:
        QuantspikeError: it is something else.
    """
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise QuantspikeError(f"{place} is no provenance of version 1: {where}: {problem['msg']}; delete it") from error


def record_differences(
    record: StageRecord, stage: Stage, written: Mapping[str, FileHash], params_file: Path, files: Path
) -> list[str]:
    """What of a stage's command, params and inputs is not what it is here, one line each.

    Args:
        record: the stage as it ran.
        stage: as dvc.yaml declares it here.
        written: hashes of inputs that earlier stages wrote there; other inputs are looked up here.
        params_file: params.yaml here; code lies beside it.
        files: the folder that holds data/ and metrics/.
    """
    lines = []
    if record.command != stage.command:
        lines.append(f"{stage.address}: the command is {stage.command!r} here, {record.command!r} there")
    here, there = params_of(stage, params_file), record.params
    for name in _both(here, there):
        lines += _value_differences(name, here.get(name, _ABSENT), there.get(name, _ABSENT))
    for path in _both(dict.fromkeys(stage.inputs), record.inputs):
        before = record.inputs.get(path)
        found = written.get(path) if path in written else _hash_here(path, stage, params_file.parent, files)
        now = found if path in stage.inputs else None
        if now != before:
            lines.append(f"{path}: {_shown(now)} here, {_shown(before)} there")
    if missing := set(stage.outputs).symmetric_difference(record.outputs):
        lines.append(f"{stage.address}: {', '.join(sorted(missing))} is written either here or there, not in both")
    return lines


def differences(provenance: Provenance, params_file: Path, files: Path) -> list[str]:
    """What of the commands, params, code and images of a chain is not what it is here, one line each.

    The images count as they lie here, however they came here and there.

    Args:
        provenance: of a finished chain.
        params_file: params.yaml here, in the project's folder.
        files: the folder that holds data/ with the images.

    Raises:
        QuantspikeError: dvc.yaml or params.yaml here cannot be read.
    """
    lines: list[str] = []
    written: dict[str, FileHash] = {}
    for stage in stages_of(provenance.chain(params_file.parent))[1:]:
        record = provenance.stages.get(stage.name)
        if record is None:
            lines.append(f"{stage.address} has not run there")
            continue
        lines += record_differences(record, stage, written, params_file, files)
        written |= record.outputs
    return list(dict.fromkeys(lines))


def _hash_here(path: str, stage: Stage, root: Path, files: Path) -> FileHash | None:
    try:
        return hash_path((root if path in stage.code else files) / path)
    except OSError:
        return None


def _both(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*here, *there]))


def _value_differences(name: str, here: Any, there: Any) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        pairs = [(f"{name}.{key}", here.get(key, _ABSENT), there.get(key, _ABSENT)) for key in _both(here, there)]
        return [line for pair in pairs for line in _value_differences(*pair)]
    return [] if here == there else [f"{name} is {here} here, {there} there"]


def _shown(found: FileHash | None) -> str:
    return "not there" if found is None else f"MD5 {found.md5}"
