"""A run, its settings, and where every file of it lies: the one place that knows the folder layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from quantspike.errors import QuantspikeError
from quantspike.params import Params, Precision, Profile, check_clip


def project_root(root: Path) -> Path:
    """Return the project's folder: `root`, or that of which it is a copy.

    For `dvc exp run --temp` and the queue, DVC copies what git tracks to .dvc/tmp/exps/..., and deletes it afterwards.
    """
    for folder in root.resolve().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def dataset_file(profile: str, root: Path = Path(".")) -> Path:
    """Return the verified images of a profile, written by `download`."""
    return root / "data" / profile / "images.safetensors"


def plots_folder(profile: str, model: str, root: Path = Path(".")) -> Path:
    """Return the folder of the figures of one network, written by `plot`."""
    return root / "plots" / profile / model


@dataclass(frozen=True)
class Run:
    """One combination of profile, model, k and seed, with its settings and files; k is `fp32` for a baseline.

    Attributes:
        profile: the protocol's name in params.yaml.
        model: the network's name in params.yaml.
        k: precision of the activations, or `fp32`.
        seed: seed of initial weights, shuffling and augmentation.
        settings: the profile.
        layers: layer string of the network, at width 1.
        root: the project's folder.
    """

    profile: str
    model: str
    k: Precision
    seed: int
    settings: Profile
    layers: str
    root: Path = Path(".")

    @property
    def name(self) -> str:
        """Folder name of the run within its profile, such as `cnn1-2-0`."""
        return f"{self.model}-{self.k}-{self.seed}"

    @property
    def key(self) -> str:
        """Unique name of the run, such as `paper-cnn1-2-0`: what DVC's stages and MLflow's runs are known by."""
        return f"{self.profile}-{self.name}"

    @property
    def baseline(self) -> Run:
        """The full-precision run of the same profile, model and seed."""
        return replace(self, k="fp32")

    @property
    def dataset(self) -> Path:
        """The images."""
        return dataset_file(self.profile, self.root)

    @property
    def data(self) -> Path:
        """Folder of the large files: weights, scores and the integer network."""
        return self.root / "data" / self.profile / self.name

    @property
    def metrics(self) -> Path:
        """Folder of the results: CSV, JSON and logs."""
        return self.root / "metrics" / self.profile / self.name

    @property
    def logs(self) -> Path:
        """Folder of the logs in the published format."""
        return self.metrics / "logs" / f"k{self.k}"

    @property
    def resume(self) -> Path:
        """Folder of the run's lock and of the states that training resumes from; DVC does not know it."""
        return self.root / "data" / "resume" / self.key

    def checkpoint(self, stage: str) -> Path:
        """Return the network that `baseline`, `train` or `finetune` wrote."""
        return self.data / f"{stage}.safetensors"

    @property
    def network(self) -> Path:
        """The trained network, whose results count."""
        return self.checkpoint("baseline" if self.k == "fp32" else "finetune")

    @property
    def integer_network(self) -> Path:
        """The integer network, written by `convert`."""
        return self.checkpoint("convert")

    @property
    def scores(self) -> Path:
        """Class scores of the trained network on the test images, written by `evaluate`."""
        return self.checkpoint("evaluate")


def find_run(params: Params, profile: str, model: str, k: Precision, seed: int, root: Path) -> Run:
    """Return one run of a params file, whether or not it is in the grid.

    Raises:
        QuantspikeError: the clip of the profile cannot be counted in steps of 2^-k.
    """
    clip = params.profiles[profile].recipe.clip
    if clip is not None and k != "fp32":
        try:
            check_clip(clip, k)
        except ValueError as error:
            raise QuantspikeError(f"profiles.{profile}.recipe.clip {error}") from error
    return Run(profile, model, k, seed, params.profiles[profile], params.models[model].layers, root)


def grid_runs(params: Params, root: Path = Path(".")) -> list[Run]:
    """Return every run of the grid: for each profile, model and seed the baseline, then each k."""
    precisions: list[Precision] = ["fp32", *params.grid.k]
    grid = product(params.grid.profile, params.grid.model, precisions, params.grid.seed)
    return [find_run(params, profile, model, k, seed, root) for profile, model, k, seed in grid]
