"""Adapts a run to Ray Tune: the one file here that imports Ray.

A worker process stays warm: with `reuse_actors` Tune hands it one run after the other, and the data set and the teacher
stay loaded between them. Whatever goes wrong inside a run is reported as a result with its reason; what reaches Tune as
an error is therefore a lost worker, and its run is queued again.
"""

from __future__ import annotations

import faulthandler
import json
import socket
import traceback
from typing import Any

import torch
from ray import tune

from trainables.out_of_memory import is_out_of_memory
from trainables.runner import Runner

# Results are gathered for so long before they are sent: each costs the driver about 10 ms.
REPORT_SECONDS = 1.0


class RunTrainable(tune.Trainable):
    """Ray Tune's view of one run. Its config is `{"request": …}`, its results `{"report": JSON text}`."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config["request"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["request"])
        return True

    def _begin(self, request: dict[str, Any]) -> None:
        self._request = request
        self._runner: Runner | None = None

    def step(self) -> dict[str, Any]:
        # A thread of the interpreter's own, which needs no lock of Python's: it ends this process even where a library
        # or a device hangs, and says where. The run then goes on elsewhere, from its checkpoint.
        faulthandler.dump_traceback_later(self._request["hangs_after"], exit=True)
        try:
            return self._step()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _step(self) -> dict[str, Any]:
        try:
            if self._runner is None:
                self._runner = Runner(self._request)
            report = self._runner.advance(REPORT_SECONDS)
        except Exception as error:
            report = {
                "run_id": self._request["run_id"],
                "attempt": self._request["attempt"],
                "epochs": [],
                "checkpoint": None,
                "device_seconds": 0.0,
                "device": str(self._request["device"]),
                "host": socket.gethostname(),
                "done": True,
                "failed": f"{type(error).__name__}: {error}",
                "out_of_memory": is_out_of_memory(error),
                "traceback": traceback.format_exc(),
            }
            self._runner = None  # what it holds of a GPU, others may need
        if report.get("out_of_memory"):
            torch.cuda.empty_cache()  # or the allocator would keep it
        return {"report": json.dumps(report), "done": report["done"]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: runs keep their own checkpoints, and the store knows which one counts."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: see `save_checkpoint`."""
