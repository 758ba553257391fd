"""Packs: what is in them, the same bytes every time, and every alteration noticed."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from away_projects import grid, make_job, make_project
from quantspike.away.packing import find_packs, read_pack, write_pack
from quantspike.away.running import run_chains
from quantspike.errors import QuantspikeError

NAME = "demo-small-1-0.tar.gz"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished chain."""
    project = make_project(tmp_path_factory.mktemp("away") / "project")
    run_chains(make_job(project), grid(project)[:1])
    return project


@pytest.fixture
def packed(project: Path) -> Path:
    return project / "build" / "packs" / NAME


def altered(packed: Path, folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A pack of the same name with other content."""
    with tarfile.open(packed) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    change(contents)
    with tarfile.open(folder / NAME, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / NAME


def test_a_pack_holds_results_integer_network_and_provenance_and_no_large_files(packed: Path) -> None:
    with tarfile.open(packed) as tar:
        names = tar.getnames()
    metrics = "metrics/demo/small-1-0"
    assert names == [
        "data/demo/small-1-0/integer/network.safetensors",
        "data/demo/small-fp32-0/pretrain.safetensors",  # which says that nothing was pre-trained
        f"{metrics}/ann.json",
        f"{metrics}/certificate.json",
        f"{metrics}/conversion.json",
        f"{metrics}/finetune.csv",
        f"{metrics}/layers.csv",
        f"{metrics}/logs/a.txt",
        f"{metrics}/logs/a/c.txt",
        f"{metrics}/logs/b.txt",
        f"{metrics}/metrics.json",
        f"{metrics}/snn.csv",
        f"{metrics}/snn.json",
        f"{metrics}/train.csv",
        "metrics/demo/small-fp32-0/pretrain.csv",  # which every k shares
        "provenance.json",
    ]
    pack = read_pack([packed])
    assert pack.files[f"{metrics}/train.csv"] == b"epoch,test_accuracy\n1,0.5\n"
    assert pack.holds("data/demo/small-1-0/integer")
    assert not pack.holds("data/demo/small-1-0/train.safetensors")
    # Known by their hashes all the same: MD5 of "weights of small-1-0 after train", by md5sum.
    known = pack.provenance.stages["train"].outputs["data/demo/small-1-0/train.safetensors"]
    assert (known.md5, known.size) == ("c8cc31b61ebc78dd9ea59465df2ed17b", 32)


def test_the_same_results_make_the_same_bytes(packed: Path, project: Path, tmp_path: Path) -> None:
    provenance = read_pack([packed]).provenance
    (again,) = write_pack(tmp_path, provenance, project / "build" / "away")
    assert again.read_bytes() == packed.read_bytes()


def test_a_large_pack_becomes_parts_that_make_one_again(packed: Path, project: Path, tmp_path: Path) -> None:
    provenance, size = read_pack([packed]).provenance, packed.stat().st_size
    (tmp_path / NAME).write_text("older")
    parts = write_pack(tmp_path, provenance, project / "build" / "away", part=-(-size // 3))
    assert [path.name for path in parts] == [f"{NAME}.{n}of3" for n in (1, 2, 3)]
    assert find_packs([tmp_path]) == {"demo-small-1-0": parts}  # the older one is gone
    assert read_pack(parts) == read_pack([packed])
    parts[1].unlink()
    with pytest.raises(QuantspikeError, match=r"1of3, demo-small-1-0\.tar\.gz\.3of3: expected .* all of its parts"):
        find_packs([tmp_path])


def test_results_that_are_not_what_the_stages_wrote_are_not_packed(packed: Path, project: Path, tmp_path: Path) -> None:
    provenance = read_pack([packed]).provenance
    results = project / "build" / "away" / "metrics" / "demo" / "small-1-0" / "snn.csv"
    before = results.read_text()
    results.write_text(before + "2,0.6,3\n")
    try:
        with pytest.raises(QuantspikeError, match=r"snn\.csv is not what the stage wrote"):
            write_pack(tmp_path, provenance, project / "build" / "away")
    finally:
        results.write_text(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics/demo/small-1-0/snn.csv", "metrics/demo/small-1-0/logs/b.txt"])
def test_a_pack_with_another_number_in_it_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    def change(contents: dict[str, bytes]) -> None:
        contents[name] = contents[name].replace(b"1", b"2")

    with pytest.raises(QuantspikeError, match=r"is not what the stage wrote .*: altered or damaged"):
        read_pack([altered(packed, tmp_path, change)])


@pytest.mark.parametrize(
    "name",
    [
        "stages/train.py",
        "metrics/demo/small-1-0/../../../params.yaml",
        "metrics/demo/small-1-0/logs/../../../../params.yaml",
        "/tmp/file",
    ],
)
def test_a_pack_with_a_file_that_no_stage_wrote_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(QuantspikeError, match="which no stage of the chain wrote: it was altered"):
        read_pack([altered(packed, tmp_path, lambda contents: contents.update({name: b"x"}))])


def test_a_link_in_a_pack_is_refused(packed: Path, tmp_path: Path) -> None:
    name = "metrics/demo/small-1-0/snn.csv"
    with tarfile.open(packed) as tar, tarfile.open(tmp_path / NAME, "w:gz") as other:
        for member in tar:
            if member.name == name:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            other.addfile(member, tar.extractfile(member) if member.isreg() else None)
    with pytest.raises(QuantspikeError, match=r"is damaged \(metrics/demo/small-1-0/snn\.csv is no plain file\)"):
        read_pack([tmp_path / NAME])


def test_no_bit_that_is_flipped_goes_unnoticed(packed: Path, tmp_path: Path) -> None:
    whole, read = packed.read_bytes(), read_pack([packed])
    random = np.random.default_rng(0)
    for place in random.integers(10, len(whole), 300):  # the first ten bytes are gzip's: date, system and the like
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        (tmp_path / NAME).write_bytes(damaged)
        with suppress(QuantspikeError):
            assert read_pack([tmp_path / NAME]) == read


def test_of_a_pack_in_two_folders_the_newest_is_taken(packed: Path, tmp_path: Path) -> None:
    for age, name in ((100, "old"), (0, "new"), (200, "oldest")):
        (tmp_path / name).mkdir()
        copy = tmp_path / name / NAME
        shutil.copy(packed, copy)
        os.utime(copy, (1_700_000_000 - age,) * 2)
    places = [tmp_path / name for name in ("old", "new", "oldest")]
    assert find_packs(places) == {"demo-small-1-0": [tmp_path / "new" / NAME]}


def test_a_pack_that_lacks_a_file_or_a_stage_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"ann\.json is not what the stage wrote"):
        read_pack([altered(packed, tmp_path, lambda contents: contents.pop("metrics/demo/small-1-0/ann.json"))])

    def cut(contents: dict[str, bytes]) -> None:
        provenance = json.loads(contents["provenance.json"])
        del provenance["stages"]["simulate"]
        contents["provenance.json"] = json.dumps(provenance).encode()

    with pytest.raises(QuantspikeError, match=r"holds only the stages .*, convert: it was not finished"):
        read_pack([altered(packed, tmp_path, cut)])


def test_a_damaged_or_renamed_file_is_refused(packed: Path, tmp_path: Path) -> None:
    content = packed.read_bytes()
    (tmp_path / NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(QuantspikeError, match=r"is damaged .*: fetch it again"):
        read_pack([tmp_path / NAME])
    (tmp_path / NAME).write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(QuantspikeError, match="is damaged"):
        read_pack([tmp_path / NAME])
    (tmp_path / "demo-large-1-0.tar.gz").write_bytes(content)
    with pytest.raises(QuantspikeError, match="holds demo-small-1-0: give it its name back"):
        read_pack([tmp_path / "demo-large-1-0.tar.gz"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(QuantspikeError, match=r"notes\.txt is no pack by its name"):
        find_packs([tmp_path / "notes.txt"])
    with pytest.raises(QuantspikeError, match="nowhere is not there"):
        find_packs([tmp_path / "nowhere"])
