"""Steps ahead of time: a thread reads them while the model computes, and a CUDA stream of its own copies them over."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from premask.feed.loader import Step


def prefetched(steps: "Iterator[Step]", ahead: int, device: "str | torch.device") -> "Iterator[Step]":
    """The steps on `device`, up to `ahead` of them made by a thread before they are asked for; none with 0."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        moved = steps if device.type == "cpu" else (step.to(device) for step in steps)
        yield from _ahead(moved, ahead) if ahead else moved
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for step, copied in _ahead(_on_stream(steps, device, copying), max(ahead, 1)):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for batch in step.batches:
            for tensor in batch.tensors:
                tensor.record_stream(computing)  # its memory is not to be reused before the model is done with it
        yield step


def _on_stream(steps: "Iterator[Step]", device: "torch.device", stream: Any) -> "Iterator[tuple[Step, Any]]":
    """Copy each step from page-locked memory on `stream`; with the event that says when that is done."""
    import torch

    for step in steps:
        with torch.cuda.stream(stream):
            moved = step.pin_memory().to(device)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        yield moved, copied


def _ahead(items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """The items, up to `ahead` of them made by a thread before they are asked for; its errors are raised here."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not closed.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    thread = threading.Thread(target=_produce, args=(items, put), daemon=True, name="premask-prefetch")
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        closed.set()
        thread.join()


def _produce(items: Iterator[Any], put: Callable[[str, Any], bool]) -> None:
    try:
        for item in items:
            if not put("item", item):
                return
        put("end", None)
    except BaseException as error:
        put("error", error)
