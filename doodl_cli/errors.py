"""The exceptions that the command line turns into an exit code of their own."""


class UserError(Exception):
    """The input is at fault: one line with the key, its value and what is allowed (exit 2)."""


class Terminated(BaseException):
    """SIGTERM arrived (exit 143). Like KeyboardInterrupt, `except Exception` lets it pass."""
