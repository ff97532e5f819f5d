"""A work item: one call of a module-level function, described so that any process anywhere can make it.

An item knows nothing of who runs it. Its digest names it in the receipts: two items with equal digests would write the
same bytes, provided that whatever shapes them (versions of rules, hashes of inputs) is among the arguments.
"""

import errno
import hashlib
import importlib
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from premask.errors import DataError, MachineError, PremaskError, UsageError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN_MACHINE = {
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EREMOTEIO,
}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "can't start new thread")
"""What loaders and threads say where memory, or a limit on it, is used up: an error without a number."""
WRONG_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}


class InternalError(PremaskError):
    """Something that premask did not foresee: a bug in premask, not a fault of the data, the call or the machine.

    The traceback of the process in which it happened is a note of the exception, so Python prints it.
    """

    exit_code = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One call to make: `function(**arguments)`, which may write files and returns a small result that pickles."""

    name: str
    """What people read in errors and progress; unique within a run."""

    function: str | Callable[..., Any]
    """`module:qualname`, or a function that can be imported under that name."""

    arguments: dict[str, Any]
    """Keyword arguments, JSON values only."""

    bounded: bool = True
    """Whether how much there is to do is bounded: an item that takes too long hangs. Not so where a whole source is
    read."""

    @property
    def reference(self) -> str:
        """The function as `module:qualname`."""
        if isinstance(self.function, str):
            return self.function
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the whole description."""
        description = [self.name, self.reference, self.arguments]
        text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def perform(self) -> Any:
        """Make the call, here and now. Raises nothing but `PremaskError`s, interrupts aside."""
        try:
            module, _, qualname = self.reference.partition(":")
            function = attrgetter(qualname)(importlib.import_module(module))
            return function(**self.arguments)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise  # an interrupt; a panic of Rust code is an error, whatever its class derives from
            understood = explain(error, f"{self.name}: ")
            if understood is error:
                raise
            raise understood from error


def explain(error: BaseException, where: str = "") -> PremaskError:
    """`error` as the `PremaskError` it amounts to; itself when it is one, an `InternalError` when it is unforeseen."""
    if isinstance(error, PremaskError):
        return error
    if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
        return MachineError(f"{where}out of memory; use fewer --workers, or a machine with more memory")
    code = error.errno if isinstance(error, OSError) else None
    if code in FULL_DISK:
        return MachineError(f"{where}the disk is full ({error}); free some space and run the same command again")
    if code in BROKEN_MACHINE:
        return MachineError(f"{where}the machine failed: {error}")
    if code in NOT_ALLOWED:
        return UsageError(f"{where}not allowed: {error}; check who owns the path and whether it may be written")
    if code in WRONG_PATH:
        return UsageError(f"{where}the path cannot be used: {error}; choose another")
    if code == errno.ENOENT:
        return DataError(f"{where}a file went away while it was needed: {error}; put it back and run the command again")
    bug = InternalError(f"{where}{type(error).__name__}: {error}\nThis is a bug in premask: please report it.")
    bug.add_note("".join(traceback.format_exception(error)).rstrip())
    return bug
