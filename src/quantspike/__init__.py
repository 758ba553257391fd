"""Quantized CNNs, converted to spiking networks with negative spikes, measured and proved equal."""
