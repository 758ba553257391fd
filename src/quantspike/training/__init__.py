"""Train networks: from images and settings to weights, curves and class scores.

In: a data set, a network, and the settings of one phase (`loop.Settings`). Out: trained weights with their optimizer's
moments (`checkpoints`), a record per epoch (`loop.Epoch`), and class scores of the test images (`evaluation`).
Training resumes after any epoch as if it had never stopped, with any number of processes.
"""
