"""Adapts a run to Ray Tune: the one file here that imports Ray.

A worker process stays warm: with `reuse_actors` Tune hands it one run after the other, and the data set and the teacher
stay loaded between them. Whatever goes wrong inside a run is reported as a result with its reason; what reaches Tune as
an error is therefore a lost worker, and its run is queued again.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import traceback
from contextlib import suppress
from typing import Any

import ray
import torch
from ray import tune

from trainables.out_of_memory import is_out_of_memory
from trainables.runner import Runner
from trainables.text.group import Group

log = logging.getLogger("kdstudy.workers")

# Results are gathered for so long before they are sent: each costs the driver about 10 ms.
REPORT_SECONDS = 1.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class _Member:
    """An actor that trains a run beside the worker that reports it."""

    def host(self) -> str:
        """The address of its node."""
        return str(ray.util.get_node_ip_address())

    def train(self, request: dict[str, Any], rank: int, world: int, address: str) -> None:
        """Take part until the run is done. Whatever goes wrong ends the process, which the others notice."""
        try:
            group = Group(rank, world, address, request["device"], request["hangs_after"])
            Runner(request, group).accompany()
        except BaseException:
            log.exception("run %s, device %d of %d", request["run_id"], rank, world)
            os._exit(1)


class RunTrainable(tune.Trainable):
    """Ray Tune's view of one run. Its config is `{"request": …}`, its results `{"report": JSON text}`."""

    _members: list[Any] = []  # noqa: RUF012 - each run has a list of its own
    _group: Group | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config["request"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["request"])
        return True

    def _begin(self, request: dict[str, Any]) -> None:
        self._part()
        self._request = request
        self._runner: Runner | None = None

    def cleanup(self) -> None:
        self._part()

    def _gather(self) -> Group | None:
        """The group of a run that has several devices: this process, and one on each of the other devices."""
        world = self._request.get("devices", 1)
        if world == 1:
            return None
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        device = self._request["device"]
        place = ray.util.get_current_placement_group()
        here = ray.util.get_node_ip_address()
        members = [
            ray.remote(_Member)
            .options(
                num_cpus=1,
                num_gpus=1 if device == "cuda" else 0,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=rank),
            )
            .remote()
            for rank in range(1, world)
        ]
        self._members = members
        hosts = set(ray.get([member.host.remote() for member in members]))
        # Of one host none is heard from beyond it.
        address = f"tcp://{'127.0.0.1' if hosts == {here} else here}:{_free_port()}"
        seconds = self._request["hangs_after"]
        for rank, member in enumerate(members, 1):
            member.train.remote(self._request, rank, world, address)
        self._group = Group(0, world, address, device, seconds)
        return self._group

    def _part(self) -> None:
        """End what accompanies a run."""
        for member in self._members:
            with suppress(Exception):  # it may be gone
                ray.kill(member)
        if self._group is not None:
            with suppress(Exception):
                self._group.close()
        self._members, self._group = [], None

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
                self._runner = Runner(self._request, self._gather())
            report = self._runner.advance(REPORT_SECONDS)
        except Exception as error:
            # A process on another of its devices is gone: the run has nothing the matter, and goes on elsewhere.
            lost = self._group is not None and "onnection" in str(error)
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
                "lost": lost,
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
