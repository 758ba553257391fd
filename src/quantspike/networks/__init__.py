"""Build networks from layer strings such as `96C3-P2-1024`.

`architecture` parses a layer string into convolutions with sizes, strides and padding, and counts what they cost.
`cnn` makes the trainable network of them: convolution, batch normalization, ReLU and, for an integer k, a quantizer
that rounds activations to steps of 2^-k.
"""
