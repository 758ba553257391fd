"""Images on a machine that may not be able to download them: put where the stages look for them, and compared."""

from __future__ import annotations

from pathlib import Path

import yaml

from quantspike.away.pipeline import STAGES, hash_path
from quantspike.away.provenance import StageRecord
from quantspike.errors import QuantspikeError
from quantspike.files import write_text
from quantspike.params import Params

_OFFICIAL_ARCHIVE = "data/downloads/cifar-10-python.tar.gz"
"""Where the source `cifar10` keeps the official archive."""


def bring_images(params: Params, profile: str, root: Path, work: Path, archive: Path | None = None) -> bool:
    """Links images into a working folder, since the sources in params.yaml start from there.

    Args:
        params: all of params.yaml.
        profile: whose `data.source` counts.
        root: the project's folder, in which images may lie.
        work: the working folder.
        archive: images from elsewhere; takes the place of the source that has its name.

    Returns:
        Whether the archive is another one than that of the call before.

    Raises:
        QuantspikeError: no source has the name of the archive, it is not there, or something lies in its place.
    """
    sources = params.profiles[profile].data.source
    places = [_OFFICIAL_ARCHIVE if source == "cifar10" else source for source in sources if source != "digits"]
    relative = [place for place in places if not Path(place).expanduser().is_absolute()]
    for place in relative:
        if (root / place).exists():
            _link(root / place, work / place)
    if archive is None:
        return False
    fitting = [place for place in relative if Path(place).name == archive.name]
    if not fitting:
        raise QuantspikeError(
            f"--source {archive} is none of the images that profiles.{profile}.data.source in {root / 'params.yaml'} "
            f"names ({', '.join(sources)}): add a path that ends in {archive.name}, such as "
            f"[data/{archive.name}, {sources[-1]}], here and at home, so that results can be adopted there"
        )
    if not archive.exists():
        raise QuantspikeError(f"--source {archive} is not there")
    _link(archive, work / fitting[0])
    note, digest = work / "records" / f"{profile}.source", hash_path(archive).model_dump_json()
    known = note.read_text(encoding="utf-8") if note.is_file() else None
    write_text(note, digest)
    return known != digest


def check_images(profile: str, root: Path, record: StageRecord) -> None:
    """Compares images with those of dvc.lock, if that knows them: results from others could not be adopted.

    Args:
        profile: whose images they are.
        root: the project's folder.
        record: of the stage that wrote the images.

    Raises:
        QuantspikeError: they are others.
    """
    try:
        content = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
        expected = {out["path"]: out["md5"] for out in content["stages"][f"{STAGES[0]}@{profile}"]["outs"]}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return
    for path, found in record.outputs.items():
        if found.md5 != expected.get(path, found.md5):
            raise QuantspikeError(
                f"{path} has MD5 {found.md5} here, but {expected[path]} in dvc.lock: results from these images could "
                "not be adopted. If the images are the same, another Pillow decodes them otherwise: take the version "
                "of the machine that wrote dvc.lock"
            )


def _link(target: Path, link: Path) -> None:
    if link.exists() and not link.is_symlink():
        if link.samefile(target):
            return
        raise QuantspikeError(f"{link} lies where images are to be linked: take it away, or name another --work")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.absolute())
