"""Convert a trained, quantized network to an integer network.

`convert.convert` folds batch normalization into the convolutions and puts every channel on an integer grid of its
own. `integer` holds the result: the input current of an image, the counts that the spiking network settles on, and
the file. `exact` computes convolutions of whole numbers without rounding, on any device.
"""
