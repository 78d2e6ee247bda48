"""The methods that come with kdstudy: for each one the parts that it is put together from, and what it declares."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from trainables.calibration import APPLY_TO, NON_TARGET
from trainables.objectives import terms
from trainables.objectives.calibrations import LoCa, swapped, unchanged
from trainables.objectives.distillation import Calibration, Distillation, Term
from trainables.objectives.method import Method, Option, Parameter
from trainables.objectives.multi_level import MultiLevel
from trainables.objectives.teacher_free import CrossEntropy, VirtualTeacher
from trainables.objectives.temperatures import Fixed, Learnt
from trainables.registry import Registry

ALPHA = Parameter("alpha", 0.95, 0.0, None, True, "LoCa's margin: p'_y - p'_k = 1 - alpha; 1 is a tie")
TAU = Parameter("tau", None, 0.0, None, True, "temperature of both softmaxes in the KD term")
BETA = Parameter("beta", None, 0.0, None, False, "weight of the KD term")
GAMMA = Parameter("gamma", None, 0.0, None, False, "weight of the cross-entropy")
EPS_LS = Parameter("eps_ls", 0.1, 0.0, 1.0, False, "probability that label smoothing spreads over all classes")
A_TF = Parameter("a_tf", 0.99, 0.0, 1.0, True, "the made teacher's probability of the label", high_open=True)
TAU_TF = Parameter("tau_tf", 20.0, 0.0, None, True, "temperature of both softmaxes in the made teacher's KD term")
ALPHA_DKD = Parameter("alpha_dkd", 1.0, 0.0, None, False, "weight of DKD's target-class term, TCKD")
BETA_DKD = Parameter("beta_dkd", 8.0, 0.0, None, False, "weight of DKD's non-target-class term, NCKD")
WARMUP_DKD = Parameter("warmup_dkd", None, 0.0, None, True, "epochs in which DKD's term reaches its full weight")
GAMMA_NKD = Parameter(
    "gamma_nkd", 3.5, 0.0, None, False, "weight of NKD's non-target term; its authors have 1.5 on ImageNet"
)
LAMBDA_NKD = Parameter(
    "lambda_nkd", 3.0, 0.0, None, True, "temperature of NKD's non-target term; its authors have 1 on ImageNet"
)
WARMUP_CTKD = Parameter(
    "warmup_ctkd", None, 0.0, None, True, "epochs in which the temperature's reversed gradient reaches its full weight"
)
TAU_MLKD = Parameter("tau_mlkd", 4.0, 0.0, None, True, "the first of MLKD's temperatures; the others are 2, 3, 5 and 6")

TAU_SQUARED = Option("tau_squared", (True, False), "whether the KD term has a factor tau^2")
DROP = Option(
    "drop", ("term", "sample"), "what goes of a mis-instructed view: its KD term, or all of it, its CE included"
)
LOCA_OPTIONS = (
    Option("order", ("temper_first", "calibrate_first"), "whether the margin is that of the tempered probabilities"),
    Option("apply_to", APPLY_TO, "which views are calibrated, by whether the teacher is right or wrong on them"),
    Option("non_target", NON_TARGET, "what becomes of a calibrated view's non-target probabilities, given their sum"),
)
READING = Option(
    "reading", ("released", "whole"), "MLKD as its released code adds it up, or every level on both views throughout"
)


def _kl(
    *,
    tau: float,
    beta: float,
    gamma: float,
    tau_squared: bool,
    term: Term = terms.kl,
    calibrate: Calibration = unchanged,
    drop: str = "term",
    standardised: bool = False,
) -> nn.Module:
    return Distillation(
        term,
        Fixed(tau),
        calibrate=calibrate,
        standardised=standardised,
        tau_squared=tau_squared,
        beta=beta,
        gamma=gamma,
        drop_wrong_views=drop == "sample",
    )


def _loca(*, alpha: float, order: str, apply_to: str, non_target: str, **others: Any) -> nn.Module:
    return _kl(calibrate=LoCa(alpha, order, apply_to, non_target), **others)


def _dkd(
    *,
    tau: float,
    alpha_dkd: float,
    beta_dkd: float,
    warmup_dkd: float,
    tau_squared: bool,
    beta: float = 1.0,
    calibrate: Calibration = unchanged,
    standardised: bool = False,
) -> nn.Module:
    return Distillation(
        terms.Decoupled(alpha_dkd, beta_dkd),
        Fixed(tau),
        calibrate=calibrate,
        standardised=standardised,
        tau_squared=tau_squared,
        beta=beta,
        warmup=warmup_dkd,
    )


def _loca_dkd(*, alpha: float, order: str, apply_to: str, non_target: str, **others: Any) -> nn.Module:
    return _dkd(calibrate=LoCa(alpha, order, apply_to, non_target), **others)


def _nkd(*, gamma_nkd: float, lambda_nkd: float) -> nn.Module:
    return Distillation(terms.Normalised(gamma_nkd, lambda_nkd), Fixed(1.0))


def _ctkd(*, beta: float, gamma: float, warmup_ctkd: float, tau_squared: bool, standardised: bool = False) -> nn.Module:
    return Distillation(
        terms.kl, Learnt(warmup_ctkd), standardised=standardised, tau_squared=tau_squared, beta=beta, gamma=gamma
    )


def _mlkd(
    *, tau_mlkd: float, beta: float, gamma: float, reading: str, tau_squared: bool, standardised: bool = False
) -> nn.Module:
    return MultiLevel(
        tau=tau_mlkd,
        beta=beta,
        gamma=gamma,
        reading=reading,
        tau_squared=tau_squared,
        standardised=standardised,
    )


def _label_smoothing(*, eps_ls: float) -> nn.Module:
    return CrossEntropy(eps_ls)


def _tf_kd(*, a_tf: float, tau_tf: float, beta: float, gamma: float, tau_squared: bool) -> nn.Module:
    return VirtualTeacher(Distillation(terms.kl, Fixed(tau_tf), beta=beta, gamma=gamma, tau_squared=tau_squared), a_tf)


def standardised(
    method: Method, defaults: Mapping[str, float], formula: str, further: tuple[Parameter, ...] = ()
) -> Method:
    """A method with its logits standardised (arXiv 2403.01427), under its name with `_ls`.

    Args:
        method: its factory takes `standardised`, and each of `further` by name.
        defaults: of parameters, that take the place of the method's own or the protocol's.
        formula: the method's loss in this form.
        further: parameters that the method has in this form only.
    """
    parameters = tuple(
        replace(parameter, default=defaults.get(parameter.name, parameter.default))
        for parameter in (*method.parameters, *further)
    )
    return replace(
        method,
        name=f"{method.name}_ls",
        summary=f"{method.summary}; logits standardised",
        formula=formula,
        source=f"arXiv 2403.01427, on {method.source}",
        parameters=parameters,
        factory=partial(method.factory, standardised=True),
    )


_DKD_TERM = "min(epoch / warmup_dkd, 1) * tau^2 * (alpha_dkd * TCKD + beta_dkd * NCKD)"
_Z = "Z(z) = (z - mean) / std"

KD = Method(
    name="kd",
    summary="distillation from the teacher as it is",
    formula="gamma * CE + beta * tau^2 * KL(p_t ‖ p_s)",
    source="arXiv 1503.02531",
    parameters=(TAU, BETA, GAMMA),
    options=(TAU_SQUARED,),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_kl,
)
LOCA = Method(
    name="loca",
    summary="the teacher calibrated on mis-instructed views",
    formula="gamma * CE + beta * tau^2 * KL(loca(p_t, y, alpha) ‖ p_s)",
    source="arXiv 2409.04778",
    parameters=(ALPHA, TAU, BETA, GAMMA),
    options=(*LOCA_OPTIONS, TAU_SQUARED),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_loca,
)
DKD = Method(
    name="dkd",
    summary="decoupled distillation: label against the rest, and the rest among itself, weighted apart",
    formula=f"CE + {_DKD_TERM}",
    source="arXiv 2203.08679",
    parameters=(TAU, ALPHA_DKD, BETA_DKD, WARMUP_DKD),
    options=(TAU_SQUARED,),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_dkd,
)
LOCA_DKD = Method(
    name="loca_dkd",
    summary="DKD from the teacher calibrated on mis-instructed views",
    formula=f"CE + {_DKD_TERM} from loca(p_t, y, alpha)",
    source="arXiv 2409.04778 on arXiv 2203.08679",
    parameters=(ALPHA, *DKD.parameters),
    options=(*LOCA_OPTIONS, TAU_SQUARED),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_loca_dkd,
)
CTKD = Method(
    name="ctkd",
    summary="distillation at a temperature that is learnt against the student",
    formula="gamma * CE + beta * tau^2 * KL(p_t ‖ p_s), tau = 1 + 20 * sigmoid(theta), theta's gradient reversed",
    source="arXiv 2211.16231",
    parameters=(BETA, GAMMA, WARMUP_CTKD),
    options=(TAU_SQUARED,),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_ctkd,
)
MLKD = Method(
    name="mlkd",
    summary="views, relations between views and relations between classes aligned at five temperatures",
    formula="gamma * (CE_weak + CE_strong) + beta * (instance + batch + class)",
    source="Jin et al., Multi-Level Logit Distillation, CVPR 2023",
    parameters=(TAU_MLKD, BETA, GAMMA),
    options=(READING, TAU_SQUARED),
    views=("weak", "strong"),
    tasks=("images",),
    needs_teacher=True,
    zero_at_teacher=True,
    factory=_mlkd,
)

# The weights and the temperature of logit standardisation's released configurations.
_LS = {"tau": 2.0, "tau_mlkd": 2.0, "beta": 9.0, "gamma": 0.1}

METHODS: Registry[Method] = Registry(
    "method",
    "kdstudy.methods",
    Method,
    (
        Method(
            name="ce",
            summary="cross-entropy alone, no teacher",
            formula="CE(z_s, y)",
            source="-",
            parameters=(),
            needs_teacher=False,
            factory=CrossEntropy,
        ),
        Method(
            name="sft",
            summary="cross-entropy with the tokens of the given responses, no teacher: supervised fine-tuning",
            formula="CE(z_s, y), the mean over response tokens",
            source="-",
            parameters=(),
            needs_teacher=False,
            factory=CrossEntropy,
            tasks=("text",),
        ),
        Method(
            name="seqkd",
            summary="cross-entropy with the tokens of the responses that the teacher generates",
            formula="CE(z_s, y'), y' the teacher's response; the mean over its tokens",
            source="arXiv 1606.07947, sequence-level knowledge distillation",
            parameters=(),
            needs_teacher=True,
            factory=CrossEntropy,
            tasks=("text",),
            from_responses=True,
        ),
        Method(
            name="label_smoothing",
            summary="cross-entropy against a label that leaves some probability to every class, no teacher",
            formula="CE(z_s, (1 - eps_ls) * one_hot(y) + eps_ls / C)",
            source="arXiv 1512.00567",
            parameters=(EPS_LS,),
            needs_teacher=False,
            factory=_label_smoothing,
        ),
        Method(
            name="tf_kd",
            summary="distillation from a made teacher that is sure of the label and even on the rest",
            formula="gamma * CE + beta * tau_tf^2 * KL(u ‖ p_s), u_y = a_tf, u_i = (1 - a_tf) / (C - 1)",
            source="arXiv 1909.11723",
            parameters=(A_TF, TAU_TF, BETA, GAMMA),
            options=(TAU_SQUARED,),
            needs_teacher=False,
            factory=_tf_kd,
        ),
        KD,
        replace(
            KD,
            name="kd_drop",
            summary="no KD term on mis-instructed views (the paper's KD*)",
            formula="gamma * CE + beta * tau^2 * [not mis-instructed] * KL(p_t ‖ p_s)",
            source="arXiv 2409.04778",
            options=(DROP, TAU_SQUARED),
            factory=partial(_kl, term=terms.kl_where_right),
        ),
        replace(
            KD,
            name="kd_swap",
            summary="label and top probability of the teacher exchanged on mis-instructed views",
            formula="gamma * CE + beta * tau^2 * KL(swap(p_t) ‖ p_s)",
            source="arXiv 1911.07471, probability shift",
            factory=partial(_kl, calibrate=swapped),
        ),
        replace(
            KD,
            name="kd_one_hot",
            summary="the one-hot label as teacher on mis-instructed views: LoCa as alpha -> 0",
            formula="gamma * CE + beta * tau^2 * KL(one_hot(p_t) ‖ p_s)",
            source="arXiv 2409.04778, alpha -> 0",
            factory=partial(_kl, term=terms.kl_or_one_hot),
        ),
        LOCA,
        DKD,
        LOCA_DKD,
        Method(
            name="nkd",
            summary="normalised distillation: the label's and the others' cross-entropy, weighted apart",
            formula="CE - p_t,y * log p_s,y - gamma_nkd * lambda_nkd^2 * sum_{i != y} q_t,i * log q_s,i",
            source="arXiv 2303.13005",
            parameters=(GAMMA_NKD, LAMBDA_NKD),
            needs_teacher=True,
            factory=_nkd,
        ),
        CTKD,
        MLKD,
        standardised(KD, _LS, f"{KD.formula}, logits {_Z}"),
        standardised(LOCA, _LS, f"{LOCA.formula}, logits {_Z}"),
        # On DKD its authors weight the whole term, so that alpha_dkd and a pair's beta_dkd keep their meaning.
        standardised(DKD, _LS, f"CE + beta * {_DKD_TERM}, logits {_Z}", further=(BETA,)),
        standardised(LOCA_DKD, _LS, f"CE + beta * {_DKD_TERM} from loca(p_t, y, alpha), logits {_Z}", further=(BETA,)),
        standardised(CTKD, _LS, f"{CTKD.formula}, logits {_Z}"),
        standardised(MLKD, _LS, f"{MLKD.formula}, the instance level of logits {_Z}"),
    ),
)
