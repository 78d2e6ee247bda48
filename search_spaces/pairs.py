"""Teacher-student pairs: those of the papers by name, and any other two models that see the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainables import models
from trainables.naming import unknown
from trainables.text import models as text_models


@dataclass(frozen=True)
class Pair:
    """A teacher's and a student's architecture; together with a data set they make a pair of a study.

    defaults: values of methods' own parameters that the papers give for this pair.
    """

    teacher: str
    student: str
    remark: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`teacher-student`, as a spec writes it."""
        return f"{self.teacher}-{self.student}"


def _with_beta(beta_dkd: float) -> dict[str, float]:
    """DKD's beta for a pair (arXiv 2203.08679, its released configurations); 8 where none is given."""
    return {"beta_dkd": beta_dkd}


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair("cnn32", "cnn3", "8x8 digits; the quick start"),
        Pair("resnet56", "resnet20", "CIFAR-100: LoCa, Tables 1 and 2", _with_beta(2.0)),
        Pair("resnet110", "resnet32", "CIFAR-100: LoCa, Tables 2 and 8", _with_beta(2.0)),
        Pair("resnet32x4", "resnet8x4", "CIFAR-100: LoCa, Table 2; Figure 5a"),
        Pair("wrn_40_2", "wrn_16_2", "CIFAR-100: LoCa, Table 2", _with_beta(6.0)),
        Pair("wrn_40_2", "wrn_40_1", "CIFAR-100: LoCa, Tables 1 and 2", _with_beta(6.0)),
        Pair("vgg13", "vgg8", "CIFAR-100: DKD", _with_beta(6.0)),
        Pair("vgg13", "mobilenet_v2", "CIFAR-100: DKD", _with_beta(6.0)),
        Pair("resnet50", "mobilenet_v2", "CIFAR-100: LoCa, Table 2"),
        Pair("resnet32x4", "shufflenet_v1", "CIFAR-100: DKD"),
        Pair("resnet32x4", "shufflenet_v2", "CIFAR-100: LoCa, Tables 2 and 8"),
        Pair("wrn_40_2", "shufflenet_v1", "CIFAR-100: LoCa, Tables 2 and 7"),
        Pair("smollm2", "smollm2_tiny", "text: a student of 3.3 M parameters, fresh; minutes on a CPU"),
        Pair("smollm2", "smollm2_every10", "text: three of the teacher's thirty layers"),
        Pair("imagenet_resnet34", "imagenet_resnet18", "ImageNet: LoCa, Tables 3 and 6; Figure 5b", _with_beta(0.5)),
        Pair("imagenet_resnet50", "imagenet_mobilenet_v1", "ImageNet: LoCa, Table 4", _with_beta(2.0)),
    )
}


def get(name: str) -> Pair:
    """The pair of that name: a listed one, or `TEACHER-STUDENT` of two models whose images have as many channels,
    or of two models of text.

    Raises:
        ValueError: no such pair; names the nearest.
    """
    if name in PAIRS:
        return PAIRS[name]
    teacher, _, student = name.partition("-")
    if text_models.parse(teacher) and text_models.parse(student):
        return Pair(teacher, student)
    known = models.names()
    if all(model in known or ":" in model for model in (teacher, student)):
        shapes = [models.get(model).input_shape for model in (teacher, student)]
        if shapes[0][0] != shapes[1][0]:
            raise ValueError(f"pair {name}: {teacher} sees images of {shapes[0]}, {student} of {shapes[1]}")
        return Pair(teacher, student)
    # The named pairs first; a slip in a model's name is still found among all that could be written.
    candidates = [f"{a}-{b}" for a in known for b in known if a != b]
    near = [pair for pair in PAIRS if set(pair.split("-")) & set(name.split("-"))]
    raise ValueError(f"{unknown('pair', name, near or candidates)} (or any TEACHER-STUDENT of `kdstudy models`)")
