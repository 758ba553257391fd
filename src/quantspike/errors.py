"""The one exception that users are meant to read."""


class QuantspikeError(Exception):
    """Something a user can mend: the message says what was found, what is allowed and what to do.

    Stage scripts and commands print the message without a traceback and exit with status 1.
    Everything else that is raised is a defect of the program and keeps its traceback.
    """
