"""Where every file of a run lies: the one place that knows the folder layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from quantspike.params import Params, Precision


def dataset_file(profile: str, root: Path = Path(".")) -> Path:
    """The verified images of a profile, written by `download`."""
    return root / "data" / profile / "images.safetensors"


def plots_folder(profile: str, model: str, root: Path = Path(".")) -> Path:
    """Figures and the tables behind them, all k of one network together, written by `plot`."""
    return root / "plots" / profile / model


@dataclass(frozen=True)
class Chain:
    """One combination of the grid, and the files its stages read and write.

    Attributes:
        profile: the protocol's name in params.yaml.
        model: the network's name in params.yaml.
        k: `fp32`, or the precision of the activations.
        seed: seed of initial weights, shuffling and augmentation.
        root: the project's folder.
    """

    profile: str
    model: str
    k: Precision
    seed: int
    root: Path = Path(".")

    @property
    def name(self) -> str:
        """Folder name of the chain within its profile, such as `cnn1-2-0`."""
        return f"{self.model}-{self.k}-{self.seed}"

    @property
    def key(self) -> str:
        """Unique name of the chain, such as `paper-cnn1-2-0`: the name of its stages in DVC."""
        return f"{self.profile}-{self.name}"

    @property
    def quantized(self) -> bool:
        """Whether the activations are quantized, so that a spiking network exists."""
        return self.k != "fp32"

    @property
    def full_precision(self) -> Chain:
        """The chain of the same network and seed in full precision."""
        return replace(self, k="fp32")

    @property
    def pretrained(self) -> Path:
        """The network in full precision from which every k starts, written by `pretrain`."""
        return self.full_precision.data / "pretrain.safetensors"

    @property
    def metrics(self) -> Path:
        """Folder of the chain's results: CSV, JSON and logs."""
        return self.root / "metrics" / self.profile / self.name

    @property
    def logs(self) -> Path:
        """Folder of the chain's logs in the published format."""
        return self.metrics / "logs" / f"k{self.k}"

    @property
    def data(self) -> Path:
        """Folder of the chain's large files: weights, logits and the integer network."""
        return self.root / "data" / self.profile / self.name

    @property
    def resume(self) -> Path:
        """Folder of the states from which a killed training of this chain goes on; DVC knows nothing of it."""
        return self.root / "data" / "resume" / self.key

    @property
    def integer_network(self) -> Path:
        """The integer network, written by `convert`; its folder is empty for fp32."""
        return self.data / "integer" / "network.safetensors"

    @property
    def dataset(self) -> Path:
        """The images this chain is trained and tested on."""
        return dataset_file(self.profile, self.root)


def chains(params: Params, root: Path = Path(".")) -> list[Chain]:
    """Every chain of the grid, in the order of params.yaml: profile, model, k, seed."""
    grid = product(params.run.profile, params.run.model, params.run.k, params.run.seed)
    return [Chain(profile, model, k, seed, root) for profile, model, k, seed in grid]
