"""The one exception with which a command tells its user what to do differently."""


class UsageError(Exception):
    """A mistake of the user's that one line explains; the command line prints it and exits with code 2."""
