"""Packs taken into the project: compared with what lies here, unpacked, and entered into dvc.lock by DVC itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.away.packing import Pack, find_packs, read_pack
from quantspike.away.pipeline import STAGES, hash_path, stages_of
from quantspike.away.provenance import FILE, Provenance, StageRecord, differences
from quantspike.errors import QuantspikeError
from quantspike.files import write_text
from quantspike.params import Params
from quantspike.paths import Chain, chains

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage


def adopt(places: Sequence[Path], params: Params, params_file: Path, *, replace: bool = False) -> list[str]:
    """Takes packs into the project, all of them or none.

    Args:
        places: packs, or folders of packs.
        params: all of params.yaml.
        params_file: where it lies, in the project's folder.
        replace: whether results that the project has of the same chains, but others, are deleted.

    Returns:
        The keys of their chains.

    Raises:
        QuantspikeError: a pack is damaged; what made it is not what lies here; the project has other results; DVC is
            not installed, or at work.
    """
    root = params_file.parent
    packs = [read_pack(parts) for parts in find_packs(places).values()]
    if not packs:
        raise QuantspikeError(f"there are no packs (<chain>.tar.gz) in {', '.join(map(str, places))}")
    grid = {chain.key for chain in chains(params)}
    for pack in packs:
        _check(pack.provenance, grid, params_file)
    with _locked_project(root) as repo:
        if not replace:
            for pack in packs:
                _check_nothing_else(pack.provenance, repo, root)
        for pack in packs:
            _unpack(pack, root)
            _enter(pack, repo, root)
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


def _unpack(pack: Pack, root: Path) -> None:
    """Puts every file and folder in its place whole, and removes what is known by its hash alone."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    # Beside the results, since a rename is atomic only within one file system.
    with _folder(data) as temporary:
        for path, content in pack.files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
        for _, record in _own_stages(pack.provenance):
            for output, found in record.outputs.items():
                target = root / output
                if target.exists() and hash_path(target) == found:
                    continue
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
                if pack.holds(output):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (temporary / output).replace(target)
    text = pack.provenance.model_dump_json(indent=2) + "\n"
    write_text(pack.provenance.chain(root).metrics / FILE, text)


def _enter(pack: Pack, repo: Repo, root: Path) -> None:
    """Has DVC write a chain's stages into dvc.lock, and asks it whether it then finds them unchanged."""
    from dvc.exceptions import DvcException

    chain = pack.provenance.chain(root)
    try:
        stages = [_noted(_stage(repo, root, chain, name), record) for name, record in _own_stages(pack.provenance)]
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        repo._reset()
        changed = [
            stage.addressing
            for name, _ in _own_stages(pack.provenance)
            if (stage := _stage(repo, root, chain, name)).changed(allow_missing=True)
        ]
    except DvcException as error:
        raise QuantspikeError(
            f"DVC refused {chain.key}: {error}; its files lie in place, the same command enters them again"
        ) from error
    if changed:
        raise QuantspikeError(
            f"DVC finds {', '.join(changed)} changed right after they were entered: `dvc status --verbose` tells why"
        )


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
def _locked_project(root: Path) -> Iterator[Repo]:
    """DVC's view of the project, under the lock that keeps other commands of DVC out."""
    try:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo, lock_repo
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"results are adopted where DVC is installed ({error}): run `make setup`") from error
    with ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo(str(root)))
            stack.enter_context(lock_repo(repo))
        except LockError as error:
            raise QuantspikeError(f"another command of DVC is at work here: wait for it ({error})") from error
        except DvcException as error:
            raise QuantspikeError(f"{root.absolute()} cannot be opened by DVC: {error}") from error
        yield repo


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A temporary folder; whatever keeps files from being written is told as what it is."""
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".adopt-") as name:
            yield Path(name)
    except OSError as error:
        raise QuantspikeError(f"{error}: nothing was entered into dvc.lock, the same command tries again") from error
