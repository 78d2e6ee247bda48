"""The paper's Table 7 measured here: time of the loss, of a batch and of an epoch, with KD and with LoCa.

    python -m benchmarks.table7 [--device cuda] [--images N] [--json FILE] [--quick]

WRN-40-2 teaches ShuffleNet-V1 on CIFAR-shaped images in batches of 64, as in the paper; the teacher is asked at each
step, as there. On a CPU an epoch is one of 1,280 images unless `--images` says otherwise, since one of 50,000 takes an
hour. The two methods take turns. Limits: LoCa does what KD does, and looks once more at the teacher's logits, so its
loss may cost a few operations on 64 x 100 numbers more and its batch nothing that a clock could see.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from analysis.papers import load_times
from benchmarks import setting
from benchmarks.measuring import Table, arguments, interleaved, ratio, show
from trainables import models, objectives, protocol
from trainables.pipeline import Pipeline
from trainables.views import normalise

TEACHER, STUDENT = "wrn_40_2", "shufflenet_v1"
METHODS = ("kd", "loca")
BATCH = 64
QUANTITIES = ("kd_loss", "batch_of_64", "epoch")


def measure(device: str, images: int, rounds: int) -> Table:
    """Seconds of the three quantities with both methods, the paper's beside them, and LoCa's share of KD's."""
    dataset = setting.images(None, train=images, test=64)
    chosen = protocol.resolve("crd-240", STUDENT)
    pipeline = Pipeline(dataset, chosen, device)
    teacher = models.build(TEACHER, dataset.num_classes).to(device).eval().requires_grad_(False)
    student = models.build(STUDENT, dataset.num_classes).to(device)
    optimiser = torch.optim.SGD(student.parameters(), lr=chosen.lr, momentum=chosen.momentum)
    options = {"tau": chosen.tau, "beta": chosen.beta, "gamma": chosen.gamma}
    losses = {"kd": objectives.build("kd", **options), "loca": objectives.build("loca", alpha=0.95, **options)}
    indices = torch.arange(images)
    first = next(iter(pipeline.training(0, 1, indices[:BATCH].split(BATCH))))
    pixels = normalise(first.views[0], dataset.mean, dataset.std)
    with torch.no_grad():
        given = student(pixels).detach(), teacher(pixels)

    def loss(method: str) -> Callable[[], None]:
        logits = given[0].clone().requires_grad_()

        def call() -> None:
            losses[method](logits, given[1], first.labels, 1)["loss"].backward()

        return call

    def step(method: str, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.no_grad():
            taught = teacher(pixels)
        value = losses[method](student(pixels), taught, labels, 1)["loss"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()

    def epoch(method: str) -> Callable[[], None]:
        def call() -> None:
            for batch in pipeline.training(0, 1, indices.split(BATCH)):
                step(method, normalise(batch.views[0], dataset.mean, dataset.std), batch.labels)

        return call

    seconds = {
        "kd_loss": interleaved({m: loss(m) for m in METHODS}, rounds=20 * rounds, calls=50, device=device),
        "batch_of_64": interleaved(
            {m: partial(step, m, pixels, first.labels) for m in METHODS}, rounds=4 * rounds, device=device
        ),
        "epoch": interleaved({m: epoch(m) for m in METHODS}, rounds=rounds, device=device),
    }
    names = {"kd_loss": "loss, ms", "batch_of_64": "batch of 64, ms", "epoch": f"epoch of {images:,} images, s"}
    printed = load_times()
    rows = []
    for quantity in QUANTITIES:
        scale = 1 if quantity == "epoch" else 1e3
        kd, loca = (seconds[quantity][method] for method in METHODS)
        paper = [printed[method, quantity] for method in METHODS]
        rows.append(
            (
                names[quantity], scale * median(kd), scale * median(loca), ratio(loca, kd), *paper, paper[1] / paper[0],
            )
        )  # fmt: skip
    columns = ("", "KD", "LoCa", "LoCa / KD", "paper: KD", "paper: LoCa", "paper: LoCa / KD")
    return Table(
        f"{TEACHER} to {STUDENT}, teacher asked at each step",
        columns,
        tuple(rows),
        "The paper's epoch is one of 50,000 images, on a GPU that it does not name.",
    )


def main() -> None:
    """Measure and show."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=None, help="images of an epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = options.images or (128 if options.quick else 50_000 if options.device == "cuda" else 1_280)
    show("table7", [measure(options.device, images, 1 if options.quick else 5)], options, options.device)


if __name__ == "__main__":
    main()
