"""The errors premask raises on purpose, and the exit code that each one means on the command line.

    PremaskError
    ├── DataError      1  the data or the dataset is at fault
    ├── UsageError     2  the call is wrong
    └── MachineError   3  the machine failed: disk full, out of memory, a lost worker

A message says where (file and row), what was expected, what was found, and what to do about it.
"""


class PremaskError(Exception):
    """Base of every error that premask raises on purpose."""

    exit_code = 1


class DataError(PremaskError):
    """The data or the dataset is at fault."""

    exit_code = 1


class UsageError(PremaskError):
    """The call is wrong: an option, a path, a recipe."""

    exit_code = 2


class MachineError(PremaskError):
    """The machine failed: disk full, out of memory, a worker that could not be replaced."""

    exit_code = 3
