"""How a student is trained: optimiser, schedule, batch, views, temperature and weights.

A protocol is a named base with changes. `changes()` lists them, so that a report can say what differs from the base.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainables.naming import unknown
from trainables.text.template import ALPACA, fault

_OF_IMAGES = ("momentum", "nesterov", "views", "pad", "flip", "image_size", "eval_resize", "drop_last")
_OF_TEXT = (
    "max_tokens",
    "max_response",
    "template",
    "packing",
    "lora_rank",
    "decoding",
    "decoding_seeds",
    "top_p",
    "score_every",
)


@dataclass(frozen=True)
class Protocol:
    """Everything about the training of a run that is neither data, networks, method nor seed.

    Epochs count from 1. `milestones` are the epochs at which `lr` is first multiplied by (one more) `lr_decay`.
    `drop_last` leaves out an epoch's last short batch. `tau`, `beta` and `gamma` are what a method uses where the point
    does not name them: loss = gamma * CE + beta * tau^2 * KL. `warmup_dkd` and `warmup_ctkd` are the epochs in which
    those methods reach their full strength. The optimiser is SGD, with weight decay on all parameters.

    `views` says how images are shown in training. `crop_flip`: `pad` black pixels on each side, a crop of the original
    size, a flip; the images must be of one size, or `image_size` brings them to it. `random_resized_crop`: a part of
    the image of 8 to 100 % of its area, scaled to `image_size`, a flip; for evaluation the shorter side is resized to
    `eval_resize` and the centre of `image_size` is cut out.

    `precision`: `float32`; `tf32`, the same with tensor cores' shorter products, where there are any; `bf16`, mixed
    precision: forward passes in bfloat16, weights and losses in float32.

    `task`: `images` or `text`, which a base decides. Of text: an example's prompt is `template` with its
    `{instruction}` and `{input}` (see `trainables.text.template`); prompt and response have `max_tokens` at most, and
    what a student writes `max_response`; `packing` puts several examples into one row of tokens, each of which sees
    only its own; `lora_rank` above 0 trains adapters of that rank and leaves the weights as they are. Responses are
    scored after each `score_every` epochs and after the last, by `decoding`: `greedy`, or `sample` with `top_p` for
    each of `decoding_seeds` seeds. `optimiser`: `sgd`, or `adamw` (for which `momentum` says nothing).
    """

    base: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    milestones: tuple[int, ...]
    lr_decay: float
    tau: float
    beta: float
    gamma: float
    warmup_dkd: float
    warmup_ctkd: float
    views: str
    pad: int
    flip: bool
    image_size: int | None = None
    eval_resize: int | None = None
    drop_last: bool = False
    precision: str = "float32"
    task: str = "images"
    optimiser: str = "sgd"
    max_tokens: int = 512
    max_response: int = 256
    template: str = ALPACA
    packing: bool = False
    lora_rank: int = 0
    decoding: str = "greedy"
    decoding_seeds: int = 1
    top_p: float = 1.0
    score_every: int = 1

    def lr_at(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 1."""
        return self.lr * self.lr_decay ** sum(milestone <= epoch for milestone in self.milestones)

    def changes(self, student: str | None = None) -> list[tuple[str, Any, Any]]:
        """(field, the base's value, this value) for each field that differs from what the base has for a student."""
        mine, base = self.identity(), resolve(self.base, student).identity()
        return [(field, base[field], value) for field, value in mine.items() if value != base[field]]

    def identity(self) -> dict[str, Any]:
        """What decides a result: all fields of its task but the name of the base, and those that came later only where
        they are not what everything had before."""
        fields = dataclasses.asdict(self)
        del fields["base"], fields["task"]  # a base is of one task
        others = _OF_TEXT if self.task == "images" else _OF_IMAGES
        fields = {name: value for name, value in fields.items() if name not in others}
        if self.task == "images" and self.optimiser == "sgd":
            del fields["optimiser"]
        return fields


_CRD_240 = Protocol(
    base="crd-240",
    epochs=240,
    batch_size=64,
    lr=0.05,
    momentum=0.9,
    nesterov=False,
    weight_decay=5e-4,
    milestones=(151, 181, 211),
    lr_decay=0.1,
    tau=4.0,
    beta=0.9,
    gamma=0.1,
    warmup_dkd=20.0,
    warmup_ctkd=10.0,
    views="crop_flip",
    pad=4,
    flip=True,
)

_IMAGENET_100 = Protocol(
    base="imagenet-100",
    epochs=100,
    batch_size=512,
    lr=0.2,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    milestones=(31, 61, 91),
    lr_decay=0.1,
    tau=1.0,
    beta=0.5,
    gamma=0.5,
    warmup_dkd=1.0,
    warmup_ctkd=10.0,
    views="random_resized_crop",
    pad=0,
    flip=True,
    image_size=224,
    eval_resize=256,
)

# Section 4.2 of the LoCa paper, as far as it says: 10 epochs, batches of 60, a learning rate of 1e-5, 512 tokens. It is
# silent on the optimiser (AdamW, as such models are trained), the schedule (constant) and the weights (as in Table 2).
_DOLLY_10 = dataclasses.replace(
    _CRD_240,
    base="dolly-10",
    task="text",
    optimiser="adamw",
    epochs=10,
    batch_size=60,
    lr=1e-5,
    weight_decay=0.01,
    milestones=(),
    tau=1.0,
    beta=0.5,
    gamma=0.5,
    warmup_dkd=1.0,
    warmup_ctkd=1.0,
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.base: protocol
    for protocol in (
        # CRD's and the LoCa paper's CIFAR-100 protocol.
        _CRD_240,
        # The LoCa paper's and DKD's ImageNet protocol.
        _IMAGENET_100,
        # The same rules in as few epochs as show a difference on a CPU.
        dataclasses.replace(
            _CRD_240, base="cifar-quick", epochs=12, milestones=(8, 10, 12), warmup_dkd=1.0, warmup_ctkd=1.0
        ),
        # ImageNet's views and optimiser for small pictures (Tiny-ImageNet's 64x64) and a CPU.
        dataclasses.replace(
            _IMAGENET_100,
            base="imagenet-quick",
            epochs=10,
            batch_size=64,
            lr=0.05,
            milestones=(6, 9),
            warmup_ctkd=1.0,
            image_size=64,
            eval_resize=64,
        ),
        _DOLLY_10,
        # A student of a few million parameters in minutes on a CPU.
        dataclasses.replace(
            _DOLLY_10,
            base="dolly-quick",
            epochs=3,
            batch_size=4,
            lr=3e-3,
            max_tokens=160,
            max_response=32,
            decoding="sample",
            decoding_seeds=2,
            top_p=0.9,
            score_every=3,
        ),
        # A whole study in minutes: about a thousand 8x8 images on one thread of a CPU. Digits are not flipped.
        dataclasses.replace(
            _CRD_240,
            base="digits-quick",
            epochs=40,
            batch_size=32,
            weight_decay=1e-3,
            milestones=(25, 33),
            warmup_dkd=3.0,
            warmup_ctkd=2.0,
            pad=1,
            flip=False,
        ),
    )
}

# Where a base treats a student in a way of its own (CRD: the light networks diverge at 0.05).
_BY_STUDENT: dict[str, dict[str, dict[str, Any]]] = {
    base: {student: {"lr": 0.01} for student in ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")}
    for base in ("crd-240", "cifar-quick")
}

VIEWS = ("crop_flip", "random_resized_crop")
PRECISIONS = ("float32", "tf32", "bf16")
OPTIMISERS = ("sgd", "adamw")
DECODINGS = ("greedy", "sample")

# field: (test, what would be right)
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "batch_size": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "lr": (lambda v: _number(v) and v > 0, "a number above 0"),
    "momentum": (lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "nesterov": (lambda v: isinstance(v, bool), "true or false"),
    "weight_decay": (lambda v: _number(v) and v >= 0, "a number from 0"),
    "milestones": (
        lambda v: isinstance(v, list | tuple) and all(_integer(m) and m >= 1 for m in v) and list(v) == sorted(v),
        "a rising list of epochs, counted from 1",
    ),
    "lr_decay": (lambda v: _number(v) and 0 < v <= 1, "a number above 0, at most 1"),
    "tau": (lambda v: _number(v) and v > 0, "a number above 0"),
    "beta": (lambda v: _number(v) and v >= 0, "a number from 0"),
    "gamma": (lambda v: _number(v) and v >= 0, "a number from 0"),
    "warmup_dkd": (lambda v: _number(v) and v > 0, "a number above 0"),
    "warmup_ctkd": (lambda v: _number(v) and v > 0, "a number above 0"),
    "views": (lambda v: v in VIEWS, f"one of {', '.join(VIEWS)}"),
    "pad": (lambda v: _integer(v) and v >= 0, "a whole number from 0"),
    "flip": (lambda v: isinstance(v, bool), "true or false"),
    "image_size": (lambda v: v is None or (_integer(v) and v >= 1), "a whole number of pixels from 1, or null"),
    "eval_resize": (lambda v: v is None or (_integer(v) and v >= 1), "a whole number of pixels from 1, or null"),
    "drop_last": (lambda v: isinstance(v, bool), "true or false"),
    "optimiser": (lambda v: v in OPTIMISERS, f"one of {', '.join(OPTIMISERS)}"),
    "max_tokens": (lambda v: _integer(v) and v >= 8, "a whole number of tokens from 8"),
    "max_response": (lambda v: _integer(v) and v >= 1, "a whole number of tokens from 1"),
    "template": (lambda v: isinstance(v, str), "a text with {instruction} and {input}"),
    "packing": (lambda v: isinstance(v, bool), "true or false"),
    "lora_rank": (lambda v: _integer(v) and v >= 0, "a whole number from 0"),
    "decoding": (lambda v: v in DECODINGS, f"one of {', '.join(DECODINGS)}"),
    "decoding_seeds": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "top_p": (lambda v: _number(v) and 0 < v <= 1, "a number above 0, at most 1"),
    "score_every": (lambda v: _integer(v) and v >= 1, "a whole number of epochs from 1"),
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
}


def names() -> list[str]:
    """The protocols that there are."""
    return sorted(PROTOCOLS)


def resolve(base: str, student: str | None = None, **overrides: Any) -> Protocol:
    """A protocol: the base, as it is for a student, with some fields changed.

    If `epochs` is changed and `milestones` or a warm-up is not, these move in proportion; milestones that fall on
    the first epoch or beyond the last one go, and a warm-up lasts one epoch at least (unless the base's is shorter).

    Raises:
        ValueError: unknown base or field, or a value that the field cannot have; one line.
    """
    if base not in PROTOCOLS:
        raise ValueError(unknown("protocol", base, PROTOCOLS))
    protocol = PROTOCOLS[base]
    if student is not None:
        protocol = dataclasses.replace(protocol, **_BY_STUDENT.get(base, {}).get(student, {}))
    for field, value in overrides.items():
        if field not in _ALLOWED:
            raise ValueError(unknown("field of the protocol", field, _ALLOWED))
        allowed, right = _ALLOWED[field]
        if not allowed(value):
            raise ValueError(f"protocol.{field}: {value!r} will not do; it must be {right}")
        if field in (_OF_TEXT if protocol.task == "images" else _OF_IMAGES):
            raise ValueError(f"protocol.{field}: {base} is a protocol of {protocol.task}, which has no such field")
        if field == "template" and (wrong := fault(value)):
            raise ValueError(f"protocol.template: {wrong}")
    values = {field: _like(getattr(protocol, field), value) for field, value in overrides.items()}
    epochs = values.get("epochs", protocol.epochs)
    if "milestones" not in values:
        scaled = (1 + math.floor((m - 1) * epochs / protocol.epochs + 0.5) for m in protocol.milestones)
        values["milestones"] = tuple(m for m in scaled if 2 <= m <= epochs)
    elif values["milestones"] and values["milestones"][-1] > epochs:
        raise ValueError(f"protocol.milestones: {values['milestones'][-1]} lies beyond the last epoch, {epochs}")
    for warmup in ("warmup_dkd", "warmup_ctkd"):
        if warmup not in values:
            full = getattr(protocol, warmup)
            values[warmup] = max(min(full, 1.0), full * epochs / protocol.epochs)
    resolved = dataclasses.replace(protocol, **values)
    if resolved.task == "text" and resolved.max_response >= resolved.max_tokens:
        raise ValueError("protocol.max_response: must be below max_tokens, since the prompt takes part of those")
    if resolved.views == "random_resized_crop" and None in (resolved.image_size, resolved.eval_resize):
        raise ValueError("protocol.views: random_resized_crop needs image_size and eval_resize, in pixels")
    if resolved.views == "random_resized_crop" and (resolved.eval_resize or 0) < (resolved.image_size or 0):
        raise ValueError("protocol.eval_resize: must be image_size at least, since the centre is cut out of it")
    if resolved.nesterov and resolved.momentum == 0:
        raise ValueError("protocol.nesterov: needs a momentum above 0")
    return resolved


def _like(default: Any, value: Any) -> Any:
    """The value in the field's own type: 1 and 1.0 must not make two identities."""
    if default is None or value is None:
        return value
    return tuple(value) if isinstance(default, tuple) else type(default)(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
