"""Run an integer network as spikes, measure every step, and prove that it settles on the integer network's counts.

`run.simulate` takes a converted network and images and returns a `trace.Trace`; `measures` turns it into the curves,
totals, certificate and logs of a run. `neuron` holds the rule of one step. Three engines run it with the same
integers: `reference` (NumPy, slow), `dense` (PyTorch, CPU or GPU) and `events` (Numba, CPU: the cost follows the
spikes).
"""
