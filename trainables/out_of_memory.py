"""Telling a lack of memory from other errors."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too small, whichever library found out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    texts = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def is_host_out_of_memory(error: BaseException) -> bool:
    """Whether this machine's own memory was too small for a tensor."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )
