"""The one exception that a user is meant to read."""


class AaftError(Exception):
    """Bad input or a missing prerequisite.

    The message names the file, row or key and the remedy, in one line. The command line prints
    it without a traceback and exits with code 2; everything else is a bug and keeps its traceback.
    """
