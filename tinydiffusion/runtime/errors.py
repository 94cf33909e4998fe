"""Ends of a run that are nobody's mistake in the settings; each has an exit code of its own.

What the user did is a `ValueError` (exit code 2); a bug is any other exception (1, a traceback).
What ends nothing, but has to be said, is a warning.
"""


class RunError(RuntimeError):
    """The run cannot go on; the message says why, and what to do."""

    exit_code = 1


class DiskError(RunError):
    """A file cannot be written: no space, read-only, out of reach."""

    exit_code = 3


class DiskFullError(DiskError):
    """There is less space than needed; the message has both numbers."""


class NonFiniteError(RunError):
    """Training or sampling has met NaN or infinity."""

    exit_code = 4


class WorkerError(RunError):
    """A process that loads pictures has died, or nothing has moved for too long."""

    exit_code = 5


class LostProcessError(RunError):
    """Another process of the job has ended, or its machine is out of reach."""

    exit_code = 7


class OutOfMemoryError(RunError):
    """The device has no memory left."""

    exit_code = 6


class WeightsError(ValueError):
    """Weights are not the genuine ones, are damaged or do not fit; the metric's row is an error."""


class MissingWeightsError(WeightsError):
    """Weights are not on this machine and cannot be fetched; the metric's row is skipped."""


class SettingWarning(Warning):
    """A setting or a word of a prompt that does not do what it seems to ask for."""


class UsageError(ValueError):
    """Arguments that the command does not take."""
