"""Training objectives: cross-entropy, and distillation from a frozen teacher. May import torch and `trainables`.

Every method is a module called as `objective(student_logits, teacher_logits, target, epoch=1)`, and answers with the
same keys, all of them 0-d float32 tensors on the device of the logits:

    loss                    what to minimise; the only one with a gradient, and that reaches the student, and what the
                            objective itself learns, alone
    ce                      CE(z_s, y), the batch mean
    kd                      the distillation term, tau^2 included, before its weight; 0 where the method has none
    mis_instruction_ratio   share of the views on which the teacher is mis-instructed; nan without teacher logits
    capped_ratio            share of the views whose calibration was capped; nan without teacher logits

and, where a method has them, with parts of its own (`tckd`, `nckd`; `temperature`; `kd_instance` …).

`student_logits` and `teacher_logits` are (B, C) in any floating type and `target` is (B,) int64; `epoch` counts from 1.
A method with V > 1 views gets logits of (V, B, C), in the order of its `views`. Everything is computed in log space and
float32, and nothing is read back from the device.

z_s and z_t are the logits of student and teacher, y the label. A method is put together from parts:

    part              choices                                                   in
    calibration       unchanged, swapped, LoCa                                  calibrations
    standardisation   none, Z                                                   standardisation
    temperature       Fixed, Learnt (against the student)                       temperatures
    term              kl, kl_where_right, kl_or_one_hot, Decoupled, Normalised  terms
    their arithmetic  KL whole and decoupled, with the student's gradient       divergences
    put together      Distillation; MultiLevel for several views and levels     distillation, multi_level
    without teacher   CrossEntropy (smoothed or not), VirtualTeacher            teacher_free

and `catalogue` says which method has which, with the names, bounds and defaults of what it takes.

A method of one's own is named `package.module:factory`, or comes from an installed package through the entry point
group `kdstudy.methods`; in both cases it is a `Method`, or a callable that returns one. `trainables.contracts.methods`
tests it.
"""

from torch import nn

from trainables.objectives import method as _method
from trainables.objectives.catalogue import METHODS
from trainables.objectives.method import Method, Option, Parameter

__all__ = ["METHODS", "VERSION", "Method", "Option", "Parameter", "build", "get", "names"]

VERSION = 1
"""Raised when a fix changes what this package computes; a fix of one method raises that method's own version."""


def names() -> list[str]:
    """The methods' names: ours in the order of registration, then those of installed packages."""
    return METHODS.names()


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none (the message has the nearest names), or what the name leads to is no method.
    """
    return METHODS.get(name)


def build(name: str, **parameters: float | str | bool) -> nn.Module:
    """The objective of that name.

    Args:
        parameters: the method's numbers and options by name. Numbers without a default (tau, beta, gamma, the warm-ups)
            come from the protocol, and must be given here; an option that is not given is its first choice.

    Raises:
        ValueError: unknown method; a parameter that it does not take, that is missing, or out of range; an option's
            unknown value; one line.
    """
    return _method.build(get(name), parameters)
