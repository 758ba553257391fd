"""Images of every source, loaded and verified, and their preparation for a network.

In goes a source (CIFAR-10, a folder of images, or scikit-learn's digits); out come a `Dataset` of uint8 images with the
SHA-256 of its content, and central crops standardized in floating point or exactly.
"""
