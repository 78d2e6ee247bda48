"""Each method's loss written again: in float64, in probability space, by the papers' formulas, with no care for speed.

`expected` gives loss, ce and kd; autograd of the float64 loss gives the gradient. Nothing of `trainables` is used.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

CAP = 1e-6
Values = Mapping[str, Any]
Expected = dict[str, Tensor]


def softmax(z: Tensor) -> Tensor:
    """exp(z) / sum exp(z)."""
    e = (z - z.detach().amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def one_hot(target: Tensor, classes: int) -> Tensor:
    return (torch.arange(classes) == target.unsqueeze(-1)).double()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row; 0 * log 0 = 0."""
    some = p > 0
    return (torch.where(some, p, 0.0) * (torch.where(some, p, 1.0).log() - q.log())).sum(-1)


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    return -(one_hot(target, z.shape[-1]) * softmax(z).log()).sum(-1).mean()


def of_label(p: Tensor, target: Tensor) -> Tensor:
    return (p * one_hot(target, p.shape[-1])).sum(-1)


def of_others(p: Tensor, target: Tensor) -> Tensor:
    """(B, C - 1): each row without its label's entry."""
    return torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(p, target.tolist(), strict=True)])


def mis_instructed(z: Tensor, target: Tensor) -> Tensor:
    return of_others(z, target).amax(-1) >= z.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def z_score(z: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7), std with n - 1."""
    centred = z - z.mean(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / (z.shape[-1] - 1)).sqrt()
    return centred / (std + 1e-7)


def loca(p: Tensor, target: Tensor, alpha: float, wrong: Tensor) -> Tensor:
    """sigma, s and p' of the paper, with the cap."""
    p_y, p_k = of_label(p, target), of_others(p, target).amax(-1)
    sigma = 1 / (1 - p_y + p_k)
    rest = of_others(p, target).sum(-1)
    s = torch.minimum(alpha * sigma, (1 - CAP) / rest)
    y = one_hot(target, p.shape[-1])
    changed = s.unsqueeze(-1) * p * (1 - y) + (1 - s * rest).unsqueeze(-1) * y
    return torch.where(wrong.unsqueeze(-1), changed, p)


def swap(p: Tensor, target: Tensor, wrong: Tensor) -> Tensor:
    """Label and first largest other class exchanged."""
    rows = p.clone()
    for i, y in enumerate(target.tolist()):
        if wrong[i]:
            others = p[i].clone()
            others[y] = -1
            k = int(others.argmax())
            rows[i, [y, k]] = p[i, [k, y]]
    return rows


def kd_loss(v: Values, ce: Tensor, kd: Tensor) -> Expected:
    return {"loss": v.get("gamma", 1.0) * ce + v.get("beta", 1.0) * kd, "ce": ce, "kd": kd}


def from_teacher(change: Callable[[Values, Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Expected]:
    """KD from the teacher's distribution after a change."""

    def formula(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
        tau = v["tau"]
        p_t = change(v, softmax(u_t / tau), target, wrong)
        return kd_loss(v, ce, tau**2 * divergence(p_t, softmax(u_s / tau)).mean())

    return formula


def kd_drop(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
    tau = v["tau"]
    of_views = divergence(softmax(u_t / tau), softmax(u_s / tau))
    return kd_loss(v, ce, tau**2 * (of_views * ~wrong).sum() / len(target))


def decoupled(v: Values, p_t: Tensor, p_s: Tensor, target: Tensor) -> Tensor:
    """alpha_dkd * TCKD + beta_dkd * NCKD of each row."""
    b_t, b_s = (torch.stack([of_label(p, target), of_others(p, target).sum(-1)], -1) for p in (p_t, p_s))
    q_t, q_s = (of_others(p, target) / of_others(p, target).sum(-1, keepdim=True) for p in (p_t, p_s))
    return v["alpha_dkd"] * divergence(b_t, b_s) + v["beta_dkd"] * divergence(q_t, q_s)


def dkd_from(change: Callable[[Values, Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Expected]:
    def formula(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
        tau = v["tau"]
        p_t = change(v, softmax(u_t / tau), target, wrong)
        kd = tau**2 * decoupled(v, p_t, softmax(u_s / tau), target).mean()
        ramp = min(epoch / v["warmup_dkd"], 1.0)
        return {"loss": ce + v.get("beta", 1.0) * ramp * kd, "ce": ce, "kd": kd}

    return formula


def nkd(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
    lambda_ = v["lambda_nkd"]
    label = -of_label(softmax(u_t), target) * of_label(softmax(u_s), target).log()
    n_t, n_s = (softmax(of_others(u, target) / lambda_) for u in (u_t, u_s))
    others = -(n_t * n_s.log()).sum(-1)
    kd = (label + v["gamma_nkd"] * lambda_**2 * others).mean()
    return {"loss": ce + kd, "ce": ce, "kd": kd}


def ctkd(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
    tau = 1 + 20 / (1 + torch.tensor(-1.0, dtype=torch.float64).exp())
    return kd_loss(v, ce, tau**2 * divergence(softmax(u_t / tau), softmax(u_s / tau)).mean())


def tf_kd(v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int) -> Expected:
    classes = u_s.shape[-1]
    y = one_hot(target, classes)
    made = v["a_tf"] * y + (1 - v["a_tf"]) / (classes - 1) * (1 - y)
    softened = made ** (1 / v["tau_tf"])
    softened = softened / softened.sum(-1, keepdim=True)
    return kd_loss(v, ce, v["tau_tf"] ** 2 * divergence(softened, softmax(u_s / v["tau_tf"])).mean())


def no_distillation(
    v: Values, ce: Tensor, u_s: Tensor, u_t: Tensor, target: Tensor, wrong: Tensor, epoch: int
) -> Expected:
    classes, eps = u_s.shape[-1], v.get("eps_ls", 0.0)
    smoothed = (1 - eps) * one_hot(target, classes) + eps / classes
    return {"loss": -(smoothed * softmax(u_s).log()).sum(-1).mean(), "ce": ce, "kd": ce.new_zeros(())}


FORMULAS: dict[str, Callable[..., Expected]] = {
    "ce": no_distillation,
    "sft": no_distillation,
    "seqkd": no_distillation,
    "label_smoothing": no_distillation,
    "tf_kd": tf_kd,
    "kd": from_teacher(lambda v, p, y, wrong: p),
    "kd_drop": kd_drop,
    "kd_swap": from_teacher(lambda v, p, y, wrong: swap(p, y, wrong)),
    "kd_one_hot": from_teacher(lambda v, p, y, wrong: torch.where(wrong.unsqueeze(-1), one_hot(y, p.shape[-1]), p)),
    "loca": from_teacher(lambda v, p, y, wrong: loca(p, y, v["alpha"], wrong)),
    "dkd": dkd_from(lambda v, p, y, wrong: p),
    "loca_dkd": dkd_from(lambda v, p, y, wrong: loca(p, y, v["alpha"], wrong)),
    "nkd": nkd,
    "ctkd": ctkd,
}


def squared_distance(left: Tensor, right: Tensor) -> Tensor:
    """‖left^T left - right^T right‖^2; for many columns by the traces of its products."""
    if left.shape[1] <= 1000:
        return (left.T @ left - right.T @ right).square().sum()
    return (left @ left.T).square().sum() - 2 * (left @ right.T).square().sum() + (right @ right.T).square().sum()


def mlkd(v: Values, z_s: Tensor, z_t: Tensor, target: Tensor, standardised: bool) -> Expected:
    """What the released code of MLKD (and of logit standardisation) adds up."""
    (weak_s, strong_s), (weak_t, strong_t) = z_s, z_t
    p = softmax(weak_t)
    share_of_views = (p.amax(-1) <= p.amax(-1).quantile(0.5)).double().mean()
    share_of_classes = (p.sum(0) <= p.sum(0).quantile(0.5)).double().mean()

    def instance(s: Tensor, t: Tensor, tau: float) -> Tensor:
        s, t = (z_score(s), z_score(t)) if standardised else (s, t)
        return tau**2 * divergence(softmax(t / tau), softmax(s / tau)).mean()

    size, classes = weak_s.shape
    base = v["tau_mlkd"]
    kd = sum(share_of_views * instance(weak_s, weak_t, tau) for tau in (base, 2, 3, 5, 6))
    kd = kd + sum(instance(strong_s, strong_t, tau) for tau in (base, 3, 5))
    kd = kd + sum(instance(weak_s, weak_t, tau) for tau in (2, 6))
    for tau in (base, 2, 3, 5, 6):
        s, t = softmax(weak_s / tau), softmax(weak_t / tau)
        kd = kd + share_of_views * (t @ t.T - s @ s.T).square().sum() / size
        kd = kd + share_of_classes * squared_distance(t, s) / classes
    return kd_loss(v, cross_entropy(weak_s, target) + cross_entropy(strong_s, target), kd)


def expected(name: str, v: Values, z_s: Tensor, z_t: Tensor, target: Tensor, epoch: int = 1) -> Expected:
    """loss, ce and kd of a method's defaults, from float64 logits."""
    base, standardised = name.removesuffix("_ls"), name.endswith("_ls")
    if base == "mlkd":
        return mlkd(v, z_s, z_t, target, standardised)
    wrong = mis_instructed(z_t, target)
    u_s, u_t = (z_score(z_s), z_score(z_t)) if standardised else (z_s, z_t)
    return FORMULAS[base](v, cross_entropy(z_s, target), u_s, u_t, target, wrong, epoch)
