"""Packs taken into the project: compared with what lies here, unpacked, and entered into dvc.lock by DVC itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.away.packing import Pack, find_packs, read_pack
from quantspike.away.pipeline import STAGES, FileHash, hash_path, stages_of
from quantspike.away.provenance import FILE, Provenance, StageRecord, differences
from quantspike.errors import QuantspikeError
from quantspike.files import write_text
from quantspike.params import Params
from quantspike.paths import Chain, chains

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

_PARAMS = "params.yaml"
"""The only params file that dvc.yaml knows."""


def adopt(places: Sequence[Path], params: Params, params_file: Path, *, replace: bool = False) -> list[str]:
    """Takes packs into the project. What is refused is refused before any file of the project is touched.

    Args:
        places: packs, or folders of packs.
        params: all of params.yaml.
        params_file: where it lies, in the project's folder.
        replace: whether results that the project has of the same chains, but others, are deleted.

    Returns:
        The keys of their chains.

    Raises:
        QuantspikeError: a pack is damaged; what made it is not what lies here; the project has other results; DVC is
            not installed, at work on these chains, or refuses them.
    """
    root = params_file.parent
    if params_file.name != _PARAMS:
        raise QuantspikeError(f"DVC reads {_PARAMS} alone, so that results are compared with it, not {params_file}")
    packs = [read_pack(parts) for parts in find_packs(places).values()]
    if not packs:
        raise QuantspikeError(f"there are no packs (<chain>.tar.gz) in {', '.join(map(str, places))}")
    grid = {chain.key for chain in chains(params)}
    for pack in packs:
        _check(pack.provenance, grid, params_file)
    with _project(root) as repo, _sole_writer(packs, repo, root):
        if not replace:
            for pack in packs:
                _check_nothing_else(pack.provenance, repo, root)
        _unpack(packs, root)
        _enter(packs, repo, root)
    for pack in packs:  # last, since it says that the chain is there
        text = pack.provenance.model_dump_json(indent=2) + "\n"
        write_text(pack.provenance.chain(root).metrics / FILE, text)
    return [pack.provenance.chain(root).key for pack in packs]


def _check(provenance: Provenance, grid: set[str], params_file: Path) -> None:
    """Whether a chain is in the grid and was made as it would be here."""
    key = provenance.chain(Path()).key
    if key not in grid:
        raise QuantspikeError(f"{key} is not in the grid of {params_file}: add it to run, so that DVC has its stages")
    if lines := differences(provenance, params_file, params_file.parent):
        listed = "\n".join(f"  {line}" for line in lines)
        raise QuantspikeError(
            f"{key} was made otherwise than the project is now (commit there: {provenance.commit or 'unknown'}):\n"
            f"{listed}\nCheck out what made it, or run it again"
        )


def _check_nothing_else(provenance: Provenance, repo: Repo, root: Path) -> None:
    """Whether the project has no other results of a chain, as files or in dvc.lock."""
    others = []
    for name, record in _own_stages(provenance):
        stage = _stage(repo, root, provenance.chain(root), name)
        locked = {out.def_path: out.hash_info.value for out in stage.outs if out.hash_info}
        for path, found in record.outputs.items():
            if (root / path).exists() and hash_path(root / path) != found:
                others.append(path)
            elif locked.get(path, found.md5) != found.md5:
                others.append(f"{path} (in dvc.lock)")
    if others:
        raise QuantspikeError(
            f"the project has other results of {provenance.chain(root).key}: {', '.join(others)}. With --replace they "
            "are deleted; what DVC's cache holds stays there"
        )


def _unpack(packs: Sequence[Pack], root: Path) -> None:
    """Puts every file and folder in its place whole, and removes what is known by its hash alone.

    Everything is written beside its place first: until that is done, nothing that was there is touched.
    """
    ready: list[tuple[Path, Path | None]] = []
    outputs = {output: (pack, found) for pack, output, found in _outputs(packs)}  # what k share is in several packs
    try:
        try:
            for output, (pack, found) in outputs.items():
                target = root / output
                if target.exists() and hash_path(target) == found:
                    continue
                beside = target.with_name(f".{target.name}.adopting") if pack.holds(output) else None
                if beside is not None:
                    _remove(beside)
                    pack.write(output, beside)
                ready.append((target, beside))
            for target, beside in ready:
                _remove(target)
                if beside is not None:
                    beside.replace(target)
        finally:
            for _, beside in ready:
                if beside is not None:
                    _remove(beside)
    except OSError as error:
        raise QuantspikeError(f"{error}: dvc.lock is as it was, the same command tries again") from error


def _outputs(packs: Sequence[Pack]) -> Iterator[tuple[Pack, str, FileHash]]:
    for pack in packs:
        for _, record in _own_stages(pack.provenance):
            for output, found in record.outputs.items():
                yield pack, output, found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _enter(packs: Sequence[Pack], repo: Repo, root: Path) -> None:
    """Has DVC write the chains' stages into dvc.lock, all at once, and asks it whether it then finds them unchanged."""
    stages = list({stage.name: _noted(stage, record) for stage, record in _stages(packs, repo, root)}.values())
    stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    repo._reset()
    changed = [stage.name for stage, _ in _stages(packs, repo, root) if stage.changed(allow_missing=True)]
    if changed:
        raise QuantspikeError(
            f"DVC finds {', '.join(changed)} changed right after they were entered: `dvc status --verbose` tells why"
        )


def _stages(packs: Sequence[Pack], repo: Repo, root: Path) -> Iterator[tuple[PipelineStage, StageRecord]]:
    for pack in packs:
        for name, record in _own_stages(pack.provenance):
            yield _stage(repo, root, pack.provenance.chain(root), name), record


def _noted(stage: PipelineStage, record: StageRecord) -> PipelineStage:
    """A stage as DVC has it after a run: hashes of files that are here from the files, of others from the record."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    hashes = record.inputs | record.outputs
    for item in (*stage.deps, *stage.outs):
        if item.exists:
            item.save()
        else:
            found = hashes[item.def_path]
            item.hash_info = HashInfo("md5", found.md5)
            item.meta = Meta(size=found.size, nfiles=found.nfiles, isdir=found.nfiles is not None)
    stage.commit(allow_missing=True)
    stage.md5 = stage.compute_md5()
    return stage


def _own_stages(provenance: Provenance) -> list[tuple[str, StageRecord]]:
    """All but the first, whose images the project has itself."""
    return [(name, record) for name, record in provenance.stages.items() if name != STAGES[0]]


def _stage(repo: Repo, root: Path, chain: Chain, name: str) -> PipelineStage:
    address = next(stage.address for stage in stages_of(chain) if stage.name == name)
    return repo.stage.load_one(str((root / "dvc.yaml").absolute()), address)


@contextmanager
def _project(root: Path) -> Iterator[Repo]:
    """DVC's view of the project, under the lock that keeps other commands of DVC from its files."""
    try:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo, lock_repo
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"results are adopted where DVC is installed ({error}): run `make setup`") from error
    try:
        with Repo(str(root)) as repo, lock_repo(repo):
            yield repo
    except LockError as error:
        raise QuantspikeError(f"another command of DVC is at work here: wait for it ({error})") from error
    except DvcException as error:
        raise QuantspikeError(f"DVC cannot work with {root.absolute()} as it is: {error}") from error


@contextmanager
def _sole_writer(packs: Sequence[Pack], repo: Repo, root: Path) -> Iterator[None]:
    """Keeps DVC from running these stages meanwhile: while a stage runs, `dvc repro` holds no other lock than this."""
    from dvc.rwlock import rwlock

    outputs = [out.fs_path for stage, _ in _stages(packs, repo, root) for out in stage.outs]
    hardlink = repo.config["core"].get("hardlink_lock", False)
    # Under the name that DVC itself uses below, which would otherwise wait for this lock.
    with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), [], outputs, hardlink):
        yield
