"""Python's collector of garbage, kept out of the way of reading many runs from MLflow."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """A block without searches for garbage.

    MLflow makes some fifty objects for each run that it reads, and the collector would go through those of all runs
    again and again, for more than half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
