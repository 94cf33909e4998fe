"""Errors that end a run and are not caused by the settings; each has its own exit code.

A mistake of the user is a `ValueError` (exit code 2); a bug is any other exception (1, with a
traceback). A problem that does not end the run is a warning.
"""


class RunError(RuntimeError):
    """A run cannot continue; the message has the reason and the remedy."""

    exit_code = 1


class DiskError(RunError):
    """A file cannot be written: no space, read-only or unreachable."""

    exit_code = 3


class DiskFullError(DiskError):
    """A disk has less free space than needed; the message has both sizes."""


class NonFiniteError(RunError):
    """Training or sampling has produced NaN or infinity."""

    exit_code = 4


class WorkerError(RunError):
    """A process that loads pictures has died, or the run has made no progress for too long."""

    exit_code = 5


class LostProcessError(RunError):
    """Another process of the job has ended, or its machine is unreachable."""

    exit_code = 7


class OutOfMemoryError(RunError):
    """The device has no memory left."""

    exit_code = 6


class WeightsError(ValueError):
    """Weights have a wrong hash, are damaged or do not fit; the metric's row is an error."""


class MissingWeightsError(WeightsError):
    """Weights are not on this machine and cannot be fetched; the metric's row is skipped."""


class SettingWarning(Warning):
    """A setting or a word of a prompt does not have the effect that one would expect."""


class UsageError(ValueError):
    """A command was given arguments that it does not accept."""
