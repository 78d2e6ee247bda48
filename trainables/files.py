"""Files that are the old one or the new one, whatever is killed when; and checkpoints read without running code."""

import io
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one line that says which, why, and what would be right."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a crash, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checkpoint_bytes(content: Any) -> bytes:
    """Tensors, and plain containers of them, as torch saves them."""
    import torch  # here, since commands that read no checkpoint should not wait for it

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; pickled code in it is refused, not run.

    Raises:
        CheckpointError: no such file, or it is truncated, not a checkpoint, or holds code.
    """
    return read_stored(path.read_bytes, str(path))


def read_stored(read: Callable[[], bytes], where: str) -> Any:
    """The same from wherever its bytes come, which `where` names.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    try:
        content = read()
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {where}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {where}: cannot be read: {error.strerror or error}") from None
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make the unpickler fail in any way
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"checkpoint {where}: it holds pickled code, which is never run; wanted: a state dict of tensors"
            ) from None
        raise CheckpointError(f"checkpoint {where}: truncated, or not a checkpoint") from None
