"""A trained network as others use it: images in as they are stored, class scores out."""

from __future__ import annotations

from torch import Tensor, nn

from quantspike import augmentation
from quantspike.measuring import channels_last
from quantspike.networks import QuantizedCNN


class ImageClassifier(nn.Module):
    """A network in evaluation mode with the preparation of test images before it.

    Forward: uint8 images [N, C, H, W] -> class scores float32 [N, classes]. The central square that the network sees
    is cut out and standardized as in training.
    """

    def __init__(self, network: QuantizedCNN) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        prepared = augmentation.central_images(images, self.network.architecture.image_size)
        scores: Tensor = self.network(channels_last(prepared))
        return scores
