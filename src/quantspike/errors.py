"""The one exception that users are meant to read."""


class QuantspikeError(Exception):
    """An error that a user can fix: the message says what was found, what is allowed and what to do.

    Stages and commands print the message without a traceback and exit with status 1.
    Every other exception is a defect of the program and keeps its traceback.
    """
