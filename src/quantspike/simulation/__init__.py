"""The spiking network, step by step, and what is measured on the way."""

from quantspike.simulation.run import simulate, simulate_shared
from quantspike.simulation.trace import Mismatch, Trace

__all__ = ["Mismatch", "Trace", "simulate", "simulate_shared"]
