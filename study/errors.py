"""Errors that a user can cause, and their exit codes."""

DONE = 0
RUNS_FAILED = 1
WRONG_REQUEST = 2
INTERRUPTED = 130


def one_line(error: BaseException) -> str:
    """What an error says, without all that follows its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RequestError(ValueError):
    """A request that cannot be carried out: one line that says what is wrong, where, and what would be right."""
