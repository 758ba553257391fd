"""The errors that users are meant to read."""

import re

# PyTorch has no error of its own for memory of the CPU, where oneDNN cannot create a primitive, and several for GPUs.
_OUT_OF_MEMORY = re.compile(
    "out of memory|allocate memory|not enough memory|alloc_failed|could not create a primitive", re.IGNORECASE
)


class QuantspikeError(Exception):
    """An error that a user can fix: the message says what was found, what is allowed and what to do.

    Stages and commands print the message without a traceback and exit with status 1.
    Every other exception is a defect of the program and keeps its traceback.
    """


class DamagedFileError(QuantspikeError):
    """The content of a file is not what this project writes."""


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is too little memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
