"""The precision of a network's arithmetic, by name: float32, tf32 or bf16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, a network's forward pass has this precision; afterwards everything is as it was.

    Args:
        precision: `float32` (in full, also on a GPU), `tf32` (a GPU's products with 10 bits of mantissa) or `bf16`
            (autocast: weights stay in float32).
        device: where the network is.
    """
    with float32_products(precision), autocast(precision, device):
        yield


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the precision asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Inside, products of float32 numbers on a GPU are in TF32 or in full, in backward passes too."""
    # The older of torch's two switches: it sets both, and torch refuses to work where the two disagree.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
