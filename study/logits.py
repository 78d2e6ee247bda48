"""The stored logits of a study's teachers: what they will take, whether there is room, and filling them ahead."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from study import teachers
from study.errors import RequestError
from study.home import Home, open_home
from study.plan import FINAL, Plan
from study.spec import Spec
from study.store import Store
from trainables import objectives
from trainables.logits import Key, Stored, stored
from trainables.teachers import list_records, load
from trainables.text.store import Stored as TextStored
from trainables.text.store import stored as text_stored

_CAP = "KDSTUDY_LOGITS_MAX_GB"
_DEFAULT_CAP = 200.0


@dataclass(frozen=True)
class Needed:
    """What the logits of a pair's teacher come to in a study.

    `key` is None where they are not stored; `why` then says so. `bytes` is the most that what this study will meet
    takes, `there` what the store takes already.
    """

    pair: str
    key: Key | None
    why: str
    bytes: int = 0
    there: int = 0


def needed(plan: Plan, device: str) -> list[Needed]:
    """What each pair of a study stores; nothing for a study that asks no teacher."""
    methods = [objectives.get(method) for method in plan.spec.methods]
    if not any(method.needs_teacher for method in methods):
        return []
    taken = {one.key.name: one.bytes for one in stored(plan.home.logits)}
    found = []
    for name, pair in plan.pairs.items():
        key = plan.logit_key(name, device)
        if key is None and pair.task == "text":
            kept = pair.teacher.top_k is not None and pair.teacher.logits != "online"
            told = (
                f"{pair.teacher.top_k} of {pair.num_classes:,} logits a token are kept"
                if kept
                else ("the teacher is asked at each step (teacher.top_k: none of its logits are kept)")
            )
            found.append(Needed(name, None, told))
            continue
        if key is None:
            endless = f"{pair.protocol.views} has views without number"
            reason = "teacher.logits: online" if pair.teacher.logits == "online" else endless
            found.append(Needed(name, None, f"the teacher is asked at each step ({reason})"))
            continue
        most = key.bytes_for(len(pair.split(FINAL).train), views_shown(plan, name))
        found.append(Needed(name, key, "", most, taken.get(key.name, 0)))
    return found


def views_shown(plan: Plan, pair: str) -> int:
    """How often a study draws a view of an image, over its seeds: runs with one seed see the same ones."""
    return plan.pairs[pair].protocol.epochs * len(_seeds(plan))


def _seeds(plan: Plan) -> list[int]:
    return [*plan.spec.seeds, *(plan.final_seeds if plan.has_final else ())]


def room(home: Home) -> tuple[int, str]:
    """Bytes that logits may still take, and what limits them.

    Raises:
        RequestError: the cap in the environment is no number.
    """
    given = os.environ.get(_CAP, str(_DEFAULT_CAP))
    try:
        cap = float(given) * 1e9
    except ValueError:
        raise RequestError(f"{_CAP}: {given!r} is no number of gigabytes") from None
    left = int(cap - sum(one.bytes for one in stored(home.logits)))
    there = next(folder for folder in (home.logits, *home.logits.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < left:
        return free, f"{home.logits} has {_size(free)} free"
    return left, f"{_CAP}={given} leaves {_size(max(0, left))}"


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"


def shared(found: Iterable[Needed]) -> list[Needed]:
    """What is stored, once for each store: pairs that share a teacher share it, and the one that needs most stands.

    A pair whose teacher is trained first has a store of its own.
    """
    stores: dict[str, Needed] = {}
    for one in found:
        if one.key is not None:
            name = one.key.name if one.key.teacher else f"{one.pair} {one.key.name}"
            stores[name] = max(one, stores.get(name, one), key=lambda each: each.bytes)
    return list(stores.values())


def bytes_more(stores: Iterable[Needed]) -> int:
    """What these stores will take beyond what they take already, at most."""
    return sum(max(0, one.bytes - one.there) for one in stores)


def require_room(plan: Plan, device: str) -> None:
    """Refuse a study whose logits will not fit.

    Raises:
        RequestError: says the sum, what there is, and what to do instead.
    """
    wanted = shared(needed(plan, device))
    total = bytes_more(wanted)
    left, limit = room(plan.home)
    if total > left:
        parts = "; ".join(
            f"{one.pair}: {one.key.images:,} images, {one.key.views.count:,} views, {one.key.classes:,} classes, "
            f"{one.key.dtype}: {_size(one.bytes)}"
            for one in wanted
            if one.key
        )
        raise RequestError(
            f"teacher.logits: storing them takes up to {_size(total)} more ({parts}), and {limit}; free some "
            "(`kdstudy logits drop`), set KDSTUDY_LOGITS to a larger disk, or teacher.logits to float16 (half of it) "
            "or online (none)"
        )


def find(home: Home, reference: str) -> list[Stored]:
    """The stores of a teacher (its name or hash), or the one of this id; ids and hashes may be cut to four characters.

    Raises:
        RequestError: there is none.
    """
    names = teacher_names(home)
    every = stored(home.logits)
    found = [one for one in every if names.get(one.key.teacher) == reference]
    if not found and len(reference) >= 4:
        found = [one for one in every if one.key.teacher.startswith(reference) or one.folder.name.startswith(reference)]
    if not found:
        hashes = {one.key.teacher for one in every} | {one.teacher for one in text_stored(home.logits)}
        known = ", ".join(sorted({names.get(each, each[:16]) for each in hashes})) or "none"
        raise RequestError(f"logits: nothing is stored for {reference!r}; stored: {known}")
    return found


def find_text(home: Home, reference: str) -> list[TextStored]:
    """What is kept of a teacher of text (its name or hash), or what has this id; cut to four characters at least."""
    names = teacher_names(home)
    every = text_stored(home.logits)
    found = [one for one in every if names.get(one.teacher) == reference]
    if not found and len(reference) >= 4:
        found = [one for one in every if one.teacher.startswith(reference) or one.id.startswith(reference)]
    return found


def teacher_names(home: Home) -> dict[str, str]:
    """The names of the home's teachers, by hash."""
    return {record.hash: record.name for record in list_records(home.root)}


def build(plan: Plan, store: Store | None, *, device: str, processes: int) -> Iterator[tuple[int, int, int]]:
    """Ask a study's teachers about every view that its runs will meet, ahead of them.

    Args:
        plan: the study.
        store: for teachers that the study has trained; None where there is none yet.
        device: of the runs.
        processes: that share the work.

    Yields:
        Of epochs of views: how many are done and how many there are, and how many images a teacher was asked about.

    Raises:
        RequestError: a teacher is not there yet, no logits are stored, or there is no room for them.
    """
    found = teachers.find(plan)
    for name in plan.pairs.keys() - found.keys():
        if store is None or teachers.adopt(plan, store, name) is None:
            raise RequestError(
                f"pairs.{name}: its teacher is not trained yet; `kdstudy teacher train {plan.spec.name}` does that"
            )
    wanted = needed(plan, device)
    if not any(one.key for one in wanted):
        reasons = "; ".join(f"{one.pair}: {one.why}" for one in wanted) or "no method of this study asks a teacher"
        raise RequestError(f"logits: there is nothing to store: {reasons}")
    require_room(plan, device)
    tasks = [
        (one.pair, seed, epoch)
        for one in wanted
        if one.key
        for seed in _seeds(plan)
        for epoch in range(1, plan.pairs[one.pair].protocol.epochs + 1)
    ]
    return _filled(plan, tasks, device, processes)


def _filled(
    plan: Plan, tasks: list[tuple[str, int, int]], device: str, processes: int
) -> Iterator[tuple[int, int, int]]:
    setting = (plan.spec.model_dump(mode="json"), plan.teacher_hashes, device)
    context = multiprocessing.get_context("spawn")
    asked = 0
    yield 0, len(tasks), 0
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=setting) as pool:
        futures = [pool.submit(_fill, *task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                asked += future.result()
                yield done, len(tasks), asked
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_here: dict[str, Any] = {}


def _begin(spec: dict[str, Any], hashes: dict[str, str], device: str) -> None:
    """Make the plan once in a process of the pool."""
    torch.set_num_threads(1)  # as runs have it
    plan = Plan(Spec.model_validate(spec), open_home(create=False))
    plan.teacher_hashes.update(hashes)
    _here.update(plan=plan, device=device, teaching={})


def _fill(pair: str, seed: int, epoch: int) -> int:
    """Fill the views of an epoch; how many images the teacher was asked about."""
    plan: Plan = _here["plan"]
    if pair not in _here["teaching"]:
        teacher = load(plan.home.root, plan.teacher_hashes[pair], lazy=True)
        _here["teaching"][pair] = plan.teaching(pair, teacher, _here["device"])
    teaching = _here["teaching"][pair]
    before = teaching.asked
    teaching.epoch(seed, epoch, plan.pairs[pair].split(FINAL).train.sort().values)
    return teaching.asked - before
