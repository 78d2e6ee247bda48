"""Separate streams of random numbers, each a pure function of the seed and a name.

The streams of a run are `init` (parameters), `order` (of the images in an epoch), `views` (see `views.py`) and `noise`
(whatever a model draws while it trains, dropout for example). No stream depends on another or on the method, so runs
with the same seed are paired; and a stream is named by its epoch, so a run resumes at any epoch without stored state.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of the stream called `names` under the run's `seed`: an integer in [0, 2**63), the same on every machine."""
    # The type is written down too, so that the stream "1" is not the stream 1.
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator at the start of the stream called `names`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *names))


@contextmanager
def drawing_from(device: torch.device, seed: int, *names: str | int) -> Iterator[None]:
    """Torch's own generators stand at the start of a stream inside, and where they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, *names))
        yield
