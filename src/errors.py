"""The one exception that a user is meant to see."""


class ParleyError(Exception):
    """Something that the user can mend, said in one line.

    The message states what is wrong and then what to do. The command line prints it without a
    traceback and leaves with status 2; `--debug` shows the traceback.
    """
