"""Gets the images of a profile, verifies them and writes them as one uniform file.

reads:   profiles.<profile>.data in params.yaml; the source that data.source names (of several, the first that is there)
writes:  data/<profile>/images.safetensors (uint8 images, labels, class names, fingerprint of the source)
         data/downloads/ (the official archive, for the source cifar10)
"""

from pathlib import Path

from quantspike import cli
from quantspike.augmentation import check_crop
from quantspike.data import first_source, load_source, save_dataset
from quantspike.params import Params
from quantspike.paths import dataset_file


def main(params: Params, root: Path, profile: str) -> None:
    settings = params.profiles[profile].data
    source = first_source(settings.source, root)
    dataset = load_source(source, downloads=root / "data" / "downloads", root=root)
    check_crop(dataset.image_size, settings.crop)
    save_dataset(dataset, dataset_file(profile, root))
    images = f"{len(dataset.train_images)} training and {len(dataset.test_images)} test images"
    print(f"{profile}: {images} from {source}, verified")


if __name__ == "__main__":
    cli.stage(main, __doc__, "profile")
