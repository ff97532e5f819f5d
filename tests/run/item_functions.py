"""What the work items of the tests do; the tests put this folder on the path, so that workers can import it."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from premask.errors import DataError


class Unsendable(DataError):
    """Pickles, but does not come back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}{two}")


def square(number: int) -> dict[str, int]:
    return {"square": number * number, "pid": os.getpid(), "parent": os.getppid()}


_KNOWN: list[str] = []


def remember(text: str, folder: str) -> str:
    begin(folder, "remember")
    _KNOWN.append(text)
    return text


def remembered() -> str:
    return _KNOWN[-1]


_THREADS: list[threading.Thread] = []


def keep_a_thread() -> int:
    _THREADS.append(threading.Thread(target=time.sleep, args=(60,), daemon=True))
    _THREADS[0].start()
    return threads_kept()


def end_a_thread() -> None:
    _THREADS.append(threading.Thread(target=time.sleep, args=(0.01,)))
    _THREADS[0].start()
    _THREADS[0].join()


def threads_kept() -> int:
    return len(_THREADS)


def forbid_forks() -> None:
    def fail() -> NoReturn:
        raise OSError(errno.EAGAIN, "no more processes")

    os.fork = fail


def environment(name: str) -> str | None:
    return os.environ.get(name)


def big(size: int) -> bytes:
    return bytes(size)


def chatter(text: str) -> str:
    print(text)
    return text


def data_error(text: str) -> NoReturn:
    raise DataError(text)


def unsendable() -> NoReturn:
    raise Unsendable("a", "b")


def unpicklable() -> Any:
    return lambda: None


def bug(key: str) -> str:
    return dict[str, str]()[key]


def no_memory() -> NoReturn:
    raise MemoryError


def no_memory_to_load_a_library() -> NoReturn:
    raise ImportError("libarrow.so: failed to map segment from shared object")


def os_error(name: str) -> NoReturn:
    code = getattr(errno, name)
    raise OSError(code, os.strerror(code), "shard.arrow")


def begin(folder: str, name: str) -> int:
    """Count, in files, how often an item has begun; this time's number."""
    number = len(list(Path(folder).glob(f"{name}.*"))) + 1
    Path(folder, f"{name}.{number}").write_text(str(os.getpid()))
    return number


def die_at_first(folder: str, name: str, deaths: int) -> int:
    number = begin(folder, name)
    if number <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(code: int) -> NoReturn:
    os._exit(code)


def slow(folder: str, name: str, seconds: float) -> str:
    begin(folder, name)
    temporary = Path(folder, f"temporary-{name}")
    try:
        temporary.touch()
        time.sleep(seconds)
    finally:
        temporary.unlink()
    return name


def stubborn(folder: str, name: str) -> NoReturn:
    """Does not end when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin(folder, name)
    while True:
        time.sleep(1)
