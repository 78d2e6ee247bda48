"""Draws docs/images/logit-standardisation.png: why logits are standardised (Sun et al., arXiv 2403.01427).

    python docs/figures/logit_standardisation.py

One view, four classes, the first one is the label. One student has nearly the teacher's logits but puts the second
class on top; the other ranks all classes as the teacher does, on a quarter of its scale. With one temperature for all,
the second has the larger loss; standardised, the order of the two losses is that of their rankings.
"""

from pathlib import Path

TEACHER = [4.0, 3.0, 1.5, 0.0]
NEAR = [3.3, 3.7, 1.3, 0.2]
RANKED = [1.0, 0.78, 0.35, 0.0]
TAU = 2.0

IMAGE = Path(__file__).resolve().parents[1] / "images" / "logit-standardisation.png"


def main() -> None:
    """Draw the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    from trainables import objectives
    from trainables.objectives.standardisation import standardise

    label = torch.tensor([0])
    teacher, near, ranked = (torch.tensor([logits]) for logits in (TEACHER, NEAR, RANKED))
    # Dark to light, so that the three are told apart without colour; the hatch does it again.
    networks = [
        ("teacher", teacher, "#1b3a57", ""),
        ("student near the logits", near, "#d95f02", "//"),
        ("student with the ranking", ranked, "#9fd3c7", ".."),
    ]
    panels = [
        ("Logits", lambda z: z, None),
        (f"Softmax at tau = {TAU:g}", lambda z: (z / TAU).softmax(-1), "kd"),
        ("The same, standardised", lambda z: (standardise(z) / TAU).softmax(-1), "kd_ls"),
    ]
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
    for axis, (title, shown, method) in zip(axes, panels, strict=True):
        for i, (name, logits, colour, hatch) in enumerate(networks):
            places = [k + 0.27 * (i - 1) for k in range(4)]
            caption = name
            if method is not None and i > 0:
                objective = objectives.build(method, tau=TAU, beta=1.0, gamma=0.0)
                caption = f"loss {objective(logits, teacher, label)['kd'].item():.4f}"
            axis.bar(
                places,
                shown(logits)[0],
                0.25,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                label=caption,
            )
        axis.set_title(title, loc="left")
        axis.set_xticks(range(4), ["label", "class 2", "class 3", "class 4"])
        axis.legend(frameon=False, loc="upper right")
    axes[0].set_ylabel("logit")
    axes[1].set_ylabel("probability")
    for axis in axes[1:]:
        axis.set_ylim(0, 0.68)
    axes[0].set_ylim(0, 5.4)
    figure.savefig(IMAGE, dpi=150)


if __name__ == "__main__":
    main()
