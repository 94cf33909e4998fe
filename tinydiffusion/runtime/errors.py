"""Errors that end a run and are not caused by the settings; each has its own exit code.

A mistake of the user is a `ValueError` (exit code 2); a bug is any other exception (1, with a
traceback). A problem that does not end the run is a warning.
"""


class RunError(RuntimeError):
    """An error that ends a run; the message has the reason and the remedy."""

    exit_code = 1


class DiskError(RunError):
    """A failure to write a file: no space, read-only or unreachable."""

    exit_code = 3


class DiskFullError(DiskError):
    """A disk with less free space than needed; the message has both sizes."""


class NonFiniteError(RunError):
    """NaN or infinity in training or sampling."""

    exit_code = 4


class WorkerError(RunError):
    """The death of a process that loads pictures, or a run without progress for too long."""

    exit_code = 5


class LostProcessError(RunError):
    """Another process of the job that has ended, or whose machine is unreachable."""

    exit_code = 7


class OutOfMemoryError(RunError):
    """A device without free memory."""

    exit_code = 6


class WeightsError(ValueError):
    """Weights that are not genuine, are damaged or do not fit; the metric's row is an error."""


class MissingWeightsError(WeightsError):
    """Weights that are not on this machine and cannot be fetched; the metric's row is skipped."""


class SettingWarning(Warning):
    """A setting, or a word of a prompt, that does not have the effect that one would expect."""


class UsageError(ValueError):
    """Arguments that the command does not accept."""


USER_MISTAKE = 2
"""Exit code for a mistake of the user. A run stopped by SIGINT ends with 130, by SIGTERM 143."""


def exit_code_of(error: BaseException) -> int:
    """Return the exit code that an error ends the program with: 1 for a bug."""
    if isinstance(error, RunError):
        return error.exit_code
    if isinstance(error, OSError):
        return DiskError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return USER_MISTAKE if isinstance(error, ValueError) else 1
