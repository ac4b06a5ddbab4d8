"""The one exception that users see: a single line that names the thing, the place and the remedy."""

from __future__ import annotations


class FlexoraError(Exception):
    """A problem in the user's input, files or machine, worded for one line of terminal.

    The command line prints the message without a traceback and exits with status 2.
    """
