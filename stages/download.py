"""Get the images of a profile, verify them and write them as one uniform file.

reads:   data of the profile in params.yaml; the source that it names
writes:  data/<profile>/images.safetensors (uint8 images, labels, class names, fingerprint of the source)
         data/downloads/ (the official archive, for the source cifar10)
"""

from pathlib import Path

from quantspike.data.dataset import hold_out, save_dataset
from quantspike.data.preparation import check_crop
from quantspike.data.sources import load_source
from quantspike.params import Params
from quantspike.paths import dataset_file, project_root
from quantspike.workflow import cli


def main(params: Params, root: Path, profile: str) -> None:
    settings = params.profiles[profile].data
    project = project_root(root)  # a relative path means the same in a copy of the project
    dataset = load_source(settings.source, downloads=project / "data" / "downloads", root=project)
    check_crop(dataset.image_size, settings.crop)
    dataset = hold_out(dataset, settings.held_out)
    save_dataset(dataset, dataset_file(profile, root))
    images = f"{len(dataset.train_images)} training and {len(dataset.test_images)} test images"
    print(f"{profile}: {images} from {settings.source}, verified")


if __name__ == "__main__":
    cli.stage(main, __doc__, "profile")
