"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """A fault the user can mend: one line naming the file, the place and the remedy.

    Commands print it without a traceback and exit with code 2, before anything was written.
    """
