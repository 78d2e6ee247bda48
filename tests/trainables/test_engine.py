import dataclasses
import hashlib
import math
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from trainables import data, engine, measures, models, objectives, splits, teachers
from trainables.engine import NonFinite, RunSpec, Trainer, batch_sizes, summary
from trainables.files import CheckpointError
from trainables.pipeline import Pipeline
from trainables.protocol import resolve
from trainables.streams import generator
from trainables.teachers import Teacher, TeacherRecord
from trainables.teaching import Teaching
from trainables.views import CropFlip

ROOT = Path(__file__).resolve().parents[2]
DIGITS = data.load("digits")
SPLIT = splits.make_split(DIGITS.train_labels, split_seed=0, validation_fraction=0.05, train_limit=150)
NO_INDICES = torch.arange(0)


def make_teacher(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = models.build("cnn3", 10)
    record = TeacherRecord(
        name="t",
        hash=f"{seed}",
        dataset="digits",
        dataset_hash=DIGITS.hash,
        model="cnn3",
        num_classes=10,
        mean=(0.3,),
        std=(0.4,),
        trained_on="unknown",
        indices_digest=None,
        test_top1=0.0,
        test_top5=0.0,
        mis_instruction_ratio=0.0,
        ratio_on="",
        origin="",
        created="",
    )
    return Teacher(record, [module])


def trainer(
    method="loca",
    seed=0,
    train=SPLIT.train,
    validation=SPLIT.validation,
    teacher=True,
    test=True,
    parameters=None,
    stop_at=None,
    dataset=DIGITS,
    workers=0,
    **over,
):
    protocol = resolve("digits-quick", **({"epochs": 3, "batch_size": 32, "lr": 0.1} | over))
    run = RunSpec("cnn3", method, parameters or {}, protocol, seed, stop_at)
    asked = make_teacher() if teacher is True else teacher or None
    some = torch.arange(100)
    return Trainer(run, dataset, train, validation, asked, test, test_indices=some, workers=workers)


def finish(running):
    history = []
    while not running.done:
        history.append(running.train_epoch())
    return history


def timeless(history):
    return [{key: value for key, value in row.items() if key != "epoch_seconds"} for row in history]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def momenta(running):
    return [state["momentum_buffer"] for state in running._optimiser.state.values()]


# An epoch


def test_an_epoch_reports_the_metrics_that_the_run_has():
    always = {"train_loss", "train_top1", "lr", "epoch_seconds"}
    ratios = {"mis_instruction_ratio", "capped_ratio"}
    test = {"test_top1", "test_top5"}
    val = {"val_top1", "val_top5"}
    assert set(trainer().train_epoch()) == always | ratios | test | val
    assert set(trainer("ce", teacher=None, validation=NO_INDICES).train_epoch()) == always | test
    assert set(trainer("ce").train_epoch()) == always | test | val
    assert set(trainer(test=False).train_epoch()) == always | ratios | val


def test_a_run_ends_after_the_protocols_epochs_at_the_scheduled_learning_rates():
    running = trainer(epochs=5, milestones=(3, 5), lr=0.1)
    history = finish(running)
    assert running.epoch == 5
    assert [row["lr"] for row in history] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_training_is_plain_sgd_on_the_views_in_the_order_of_their_streams():
    """A second implementation, image by image and without an optimiser: losses of two epochs, in float64."""
    running = trainer("kd", epochs=2, milestones=(2,), lr=0.05, weight_decay=1e-2, train=SPLIT.train[:75])
    protocol, views, asked = running.run.protocol, CropFlip(1, False), make_teacher()
    with torch.random.fork_rng():
        net = models.build("cnn3", 10)
    net.load_state_dict(running.student_state())
    net.double().train()
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    expected = []
    for epoch in (1, 2):
        order = SPLIT.train[:75][torch.randperm(75, generator=generator(0, "order", epoch))]
        losses = []
        for batch in order.split(32):
            one_by_one = [
                views.apply(DIGITS.train_images.pixels[i : i + 1], views.view_ids(0, epoch, torch.tensor([i])))
                for i in batch.tolist()
            ]
            shown = torch.cat(one_by_one)
            z_s = net((shown.double() / 255 - DIGITS.mean[0]) / DIGITS.std[0])
            z_t = asked.logits(shown).double()
            p_t, p_s = (z_t / 4).softmax(1), (z_s / 4).softmax(1)
            kl = (p_t * (p_t / p_s).log()).sum(1).mean()
            loss = 0.1 * F.cross_entropy(z_s, DIGITS.train_labels[batch]) + 0.9 * 16 * kl
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g, v in zip(net.parameters(), gradients, velocity, strict=True):
                    v.mul_(0.9).add_(g + 1e-2 * p)
                    p.sub_(protocol.lr_at(epoch) * v)
            losses.append(loss.item() * len(batch))
        expected.append(sum(losses) / 75)
    assert [row["train_loss"] for row in finish(running)] == pytest.approx(expected, rel=1e-4)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(running.student_state()[key].double(), value.double(), rtol=1e-3, atol=1e-4)


def test_accuracies_are_those_of_the_student_in_evaluation_mode():
    running = trainer(test=True)
    metrics = running.train_epoch()
    net = models.build("cnn3", 10)
    net.load_state_dict(running.student_state())
    net.eval()
    parts = {
        "val": (DIGITS.train_images.pixels[SPLIT.validation], DIGITS.train_labels[SPLIT.validation]),
        "test": (DIGITS.test_images.pixels[:100], DIGITS.test_labels[:100]),
    }
    for name, (images, labels) in parts.items():
        with torch.no_grad():
            logits = net((images.float() / 255 - DIGITS.mean[0]) / DIGITS.std[0])
        assert metrics[f"{name}_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        assert metrics[f"{name}_top5"] == pytest.approx(100 * (ranks < 5).double().mean().item())


def test_the_logged_ratio_is_the_teachers_on_the_views_of_the_epoch():
    running = trainer()
    for epoch in (1, 2):
        logged = running.train_epoch()["mis_instruction_ratio"]
        views, images = CropFlip(1, False), SPLIT.train
        shown = views.apply(DIGITS.train_images.pixels[images], views.view_ids(0, epoch, images))
        z = make_teacher().logits(shown)
        label = DIGITS.train_labels[images][:, None]
        others = z.scatter(1, label, -math.inf).max(1).values
        assert logged == pytest.approx((others >= z.gather(1, label)[:, 0]).double().mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("method", "parameters", "losses"),
    [
        ("ce", {}, [2.32297, 2.27442, 2.22809]),
        ("kd", {}, [0.30918, 0.25675, 0.23821]),
        ("loca", {"alpha": 0.8}, [2.0097, 1.95158, 1.91054]),
    ],
)
def test_a_tiny_runs_losses_are_the_recorded_ones(method, parameters, losses):
    """If they move on purpose, the version of the component that moved them must be raised."""
    history = finish(trainer(method, parameters=parameters))
    assert [row["train_loss"] for row in history] == pytest.approx(losses, rel=1e-3)


def test_the_batches_of_a_tiny_run_are_the_recorded_ones():
    """Order and views are integers: they are the same on every machine."""
    sha = hashlib.sha256()
    running = trainer("ce")
    for epoch in (1, 2):
        for (pixels,), _, target, _ in batches_of(running, epoch):
            levels = ((pixels * DIGITS.std[0] + DIGITS.mean[0]) * 255).round().to(torch.uint8)
            sha.update(levels.numpy().tobytes())
            sha.update(target.numpy().astype("<i8").tobytes())
    assert sha.hexdigest()[:16] == "3698f81ffa8e73ee"


# Seeds


def test_a_run_repeats_bit_for_bit_whatever_else_draws_random_numbers():
    first, second = trainer(), trainer()
    history = finish(first)
    torch.manual_seed(99)
    torch.rand(7)
    assert timeless(finish(second)) == timeless(history)
    assert same(first.student_state(), second.student_state())


def test_a_run_leaves_torchs_own_generator_where_it_was():
    before = torch.get_rng_state()
    finish(trainer(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def batches_of(running, epoch):
    """Each batch of an epoch as the networks see it: normalised views, the teacher's logits, labels, and its size."""
    for shown, logits, size in running.lessons.batches(epoch):
        yield [running.lessons.normalised(pixels) for pixels in shown.views], logits, shown.labels, size


def seen(running):
    """Every batch of two epochs, as the student and the teacher see it."""
    return [(x.clone(), y.clone()) for epoch in (1, 2) for (x, *_), _, y, _ in batches_of(running, epoch)]


@pytest.mark.parametrize("method", objectives.names())
def test_runs_with_one_seed_share_initial_weights_order_and_views_whatever_the_method(method):
    one, other = trainer("ce", teacher=None), trainer(method)
    assert same(one.student_state(), other.student_state())
    for (x, y), (x2, y2) in zip(seen(one), seen(other), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_runs_with_other_seeds_share_none_of_them():
    one, other = trainer(seed=0), trainer(seed=1)
    assert not same(one.student_state(), other.student_state())
    (x, y), (x2, y2) = seen(one)[0], seen(other)[0]
    assert not torch.equal(y, y2)
    assert not torch.equal(x, x2)


def test_the_view_of_an_image_does_not_depend_on_which_others_are_trained_on():
    few, many = trainer(train=SPLIT.train[:40]), trainer()
    for running in (few, many):
        running.views_of = {}
        for epoch in (1, 2):
            order = running._train[torch.randperm(len(running._train), generator=generator(0, "order", epoch))].tolist()
            shown = torch.cat([x for (x,), _, _, _ in batches_of(running, epoch)])
            running.views_of |= {(epoch, image): view for image, view in zip(order, shown, strict=True)}
    assert all(torch.equal(view, many.views_of[key]) for key, view in few.views_of.items())


# Batches


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (96, 32, [32, 32, 32]),
        (100, 32, [32, 32, 32, 4]),
        (97, 32, [32, 32, 33]),
        (33, 32, [33]),
        (1, 32, [1]),
        (3, 1, [1, 1, 1]),
        (20, 32, [20]),
        (150, 10, [10] * 15),
        (141, 10, [10] * 13 + [11]),
        (81, 10, [10] * 7 + [11]),
    ],
)
def test_a_last_short_batch_is_kept_and_a_lone_last_image_joins_the_batch_before(n, size, expected):
    running = trainer(train=SPLIT.train[:n], batch_size=size)
    batches = list(batches_of(running, 1))
    assert [len(y) for _, _, y, _ in batches] == expected
    assert all(len(x) == len(z) == len(y) == size for (x,), z, y, size in batches)
    labels = torch.cat([y for _, _, y, _ in batches])
    assert torch.equal(labels.sort().values, DIGITS.train_labels[SPLIT.train[:n]].sort().values)


class OnePixel(nn.Module):
    """Batch norm over single pixels: it refuses a batch of one image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.5))

    def forward(self, images):
        return self.net(images)


@pytest.fixture
def one_pixel(monkeypatch):
    entry = dataclasses.replace(models.get("cnn3"), name="one_pixel", factory=lambda classes: OnePixel())
    monkeypatch.setitem(models.MODELS._own, "one_pixel", entry)


def one_pixel_run(n, batch_size):
    protocol = resolve("digits-quick", epochs=2, batch_size=batch_size)
    return Trainer(RunSpec("one_pixel", "ce", {}, protocol, 0), DIGITS, SPLIT.train[:n], SPLIT.validation, None, False)


@pytest.mark.usefixtures("one_pixel")
def test_a_lone_last_image_does_not_stop_a_student_with_batch_norm_over_single_pixels():
    history = finish(one_pixel_run(33, 32))
    assert all(math.isfinite(row["train_loss"]) for row in history)


@pytest.mark.usefixtures("one_pixel")
def test_dropout_draws_from_the_runs_own_stream(tmp_path):
    whole = one_pixel_run(64, 16)
    first = whole.train_epoch()
    whole.save(tmp_path / "checkpoint")
    second = whole.train_epoch()
    torch.manual_seed(5)
    resumed = one_pixel_run(64, 16)
    resumed.load(tmp_path / "checkpoint")
    assert timeless([resumed.train_epoch()]) == timeless([second]) != timeless([first])


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(96, 32, [32] * 3), (100, 32, [32] * 3), (97, 32, [32] * 3), (20, 32, [20]), (1, 32, [1]), (3, 1, [1] * 3)],
)
def test_a_last_short_batch_is_left_out_where_it_is_to_be_dropped_and_is_not_the_only_one(n, size, expected):
    running = trainer(train=SPLIT.train[:n], batch_size=size, drop_last=True)
    assert [len(y) for _, _, y, _ in batches_of(running, 1)] == expected == batch_sizes(n, size, drop_last=True)


def test_cifars_50000_images_in_batches_of_64_are_782_steps_and_781_without_the_short_one():
    kept, dropped = batch_sizes(50_000, 64), batch_sizes(50_000, 64, drop_last=True)
    assert (len(kept), sum(kept), kept[-1]) == (782, 50_000, 16)
    assert (len(dropped), sum(dropped), set(dropped)) == (781, 49_984, {64})


def test_which_images_a_dropped_batch_leaves_out_changes_with_the_epoch_and_the_means_are_over_the_others():
    running = trainer("ce", train=SPLIT.train[:75], drop_last=True)
    first, second = (torch.cat([y for _, _, y, _ in batches_of(running, epoch)]) for epoch in (1, 2))
    assert len(first) == len(second) == 64
    assert not torch.equal(first.sort().values, second.sort().values)
    assert running.train_epoch()["train_top1"] % (100 / 64) == pytest.approx(0, abs=1e-4)


# Views, parts and parameters that a method asks for


class Asked(nn.Module):
    """Cross-entropy on all views, weighted by a parameter that is trained, with parts of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))
        self.calls = []

    def forward(self, student_logits, teacher_logits, target, epoch=1):
        self.calls.append((student_logits.shape, teacher_logits.shape, student_logits.dtype, teacher_logits.dtype))
        views = student_logits if student_logits.ndim == 3 else student_logits[None]
        ce = torch.stack([F.cross_entropy(view, target) for view in views]).mean()
        zero = torch.zeros(())
        parts = {"loss": ce * self.weight, "ce": ce.detach(), "kd": zero}
        return parts | {"mis_instruction_ratio": zero, "capped_ratio": zero, "weight": self.weight.detach()}


@pytest.fixture
def method(monkeypatch):
    def register(views, **options):
        entry = types.SimpleNamespace(name="asked", needs_teacher=True, parameters=(), views=views)
        monkeypatch.setattr(engine.objectives, "get", lambda name: entry)
        monkeypatch.setattr(engine.objectives, "build", lambda name, **parameters: Asked())

    return register


def test_with_several_views_the_student_sees_each_as_a_batch_and_the_logits_are_stacked(method):
    method(("weak", "strong"))
    running = trainer("asked", train=SPLIT.train[:64], test=False)
    sizes = []
    running.lessons.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    batches = list(batches_of(running, 1))
    running.train_epoch()
    # Two batches of two views; then the validation part.
    assert sizes[:4] == [32] * 4
    assert {call[:2] for call in running.objective.calls} == {((2, 32, 10), (2, 32, 10))}
    (weak, strong), asked, _, _ = batches[0]
    assert not torch.equal(weak, strong)
    teacher = make_teacher()
    shown = next(Pipeline(DIGITS, running.run.protocol).training(0, 1, [first_batch(running)], ("weak", "strong")))
    for pixels, logits in zip(shown.views, asked, strict=True):
        assert torch.equal(teacher.logits(pixels), logits)


def first_batch(running):
    order = running._train[torch.randperm(len(running._train), generator=generator(0, "order", 1))]
    return order[: running.run.protocol.batch_size]


def test_a_methods_own_parameter_is_trained_its_own_part_is_a_metric_and_both_are_resumed(method, tmp_path):
    method(("weak",))
    whole = trainer("asked")
    history = finish(whole)
    values = [row["weight"] for row in history]
    assert values[0] > values[1] > values[2]
    assert not {"ce", "kd", "loss"} & set(history[0])
    begun = trainer("asked")
    begun.train_epoch()
    begun.save(tmp_path / "checkpoint")
    resumed = trainer("asked")
    resumed.load(tmp_path / "checkpoint")
    assert timeless(finish(resumed)) == timeless(history[1:])
    assert torch.equal(resumed.objective.weight, whole.objective.weight)


# Stopping early


def test_a_run_stops_after_the_first_epoch_that_reaches_its_accuracy_and_a_resumed_one_knows(tmp_path):
    history = finish(trainer("ce", epochs=8))
    goal = history[3]["train_top1"]
    reached = next(i for i, row in enumerate(history) if row["train_top1"] >= goal)
    running = trainer("ce", epochs=8, stop_at=goal)
    assert timeless(finish(running)) == timeless(history[: reached + 1])
    assert running.done
    running.save(tmp_path / "checkpoint")
    again = trainer("ce", epochs=8, stop_at=goal)
    assert not again.done
    again.load(tmp_path / "checkpoint")
    assert again.done
    with pytest.raises(CheckpointError, match="its stop_at is"):
        trainer("ce", epochs=8).load(tmp_path / "checkpoint")


def test_a_run_that_never_reaches_its_accuracy_ends_after_the_last_epoch():
    assert len(finish(trainer("ce", epochs=2, stop_at=100.0))) == 2


# Precision


def test_tf32_is_what_float32_is_on_a_cpu():
    assert timeless(finish(trainer(precision="tf32"))) == timeless(finish(trainer()))


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_the_switches_for_tf32_are_set_for_the_epoch_and_set_back(precision, tf32):
    running = trainer("ce", precision=precision, test=False)
    cuda, cudnn, seen = torch.backends.cuda.matmul, torch.backends.cudnn, set()
    running.lessons.model.register_forward_hook(lambda *_: seen.add((cuda.allow_tf32, cudnn.allow_tf32)))
    before = cuda.allow_tf32, cudnn.allow_tf32
    running.train_epoch()
    assert seen == {(tf32, tf32)}
    assert (cuda.allow_tf32, cudnn.allow_tf32) == before
    assert before == (False, True)  # torch's own, so that a change of them is noticed here


def test_bf16_is_for_the_forward_passes_and_losses_and_weights_stay_float32(method):
    method(("weak",))
    running = trainer("asked", precision="bf16", epochs=1)
    seen = set()
    running.lessons.model.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    metrics = running.train_epoch()
    assert seen == {torch.bfloat16}
    assert {call[2:] for call in running.objective.calls} == {(torch.float32, torch.float32)}
    assert all(value.dtype == torch.float32 for value in running.lessons.model.parameters())
    full = trainer("asked", epochs=1).train_epoch()
    assert metrics["train_loss"] == pytest.approx(full["train_loss"], rel=0.03)
    assert metrics["train_loss"] != full["train_loss"]


# Data and students that do not fit, and images of all sizes


def test_a_student_that_cannot_take_the_images_says_so():
    protocol = resolve("digits-quick")
    with pytest.raises(ValueError, match="resnet20"):
        Trainer(RunSpec("resnet20", "ce", {}, protocol, 0), DIGITS, SPLIT.train, NO_INDICES, None, True)


@pytest.fixture
def photographs(tmp_path):
    """Ten training images of each of three classes, of two sizes; three test images."""
    for part, n in (("train", 10), ("val", 1)):
        for c, name in enumerate("abc"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                draw = np.random.default_rng(10 * c + i)
                pixels = draw.integers(80 * c, 80 * c + 90, (40 + i % 2, 36, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def photograph_run(root, method="ce", bad_images="fail", workers=0, **over):
    protocol = resolve("imagenet-quick", image_size=32, eval_resize=32, batch_size=8, epochs=2, **over)
    dataset = data.load("image_folder", root, bad_images=bad_images)
    run = RunSpec("resnet8x4", method, {}, protocol, 0)
    return Trainer(run, dataset, torch.arange(28), torch.arange(28, 30), None, True, workers=workers)


@pytest.mark.slow
def test_a_run_on_images_of_several_sizes_resumes_bit_for_bit_with_other_workers(photographs, tmp_path):
    whole = photograph_run(photographs)
    history = finish(whole)
    begun = photograph_run(photographs)
    first = begun.train_epoch()
    begun.save(tmp_path / "checkpoint")
    resumed = photograph_run(photographs, workers=1)
    resumed.load(tmp_path / "checkpoint")
    assert timeless([first, *finish(resumed)]) == timeless(history)
    assert same(resumed.student_state(), whole.student_state())
    assert "skipped_images" not in history[0]


@pytest.mark.parametrize("views", [{}, {"views": "crop_flip", "pad": 2}])
def test_images_that_do_not_decode_end_a_run_or_are_left_out_and_counted(photographs, views):
    for i in (1, 4):
        (photographs / "train" / "b" / f"{i}.png").write_text("no image")
    with pytest.raises(data.DataError, match=r"train/b/[14].png: not an image"):
        finish(photograph_run(photographs, **views))
    history = finish(photograph_run(photographs, bad_images="skip", **views))
    assert [row["skipped_images"] for row in history] == [2.0, 2.0]
    assert all(math.isfinite(row["train_loss"]) for row in history)
    assert history[0]["train_top1"] * 26 / 100 == pytest.approx(round(history[0]["train_top1"] * 26 / 100), abs=1e-3)


def test_a_run_all_of_whose_images_are_bad_says_so(photographs):
    running = photograph_run(photographs, bad_images="skip")
    for file in (photographs / "train").glob("*/*.png"):
        file.write_text("no image")
    with pytest.raises(data.DataError, match="not one of its images decodes"):
        running.train_epoch()


def test_wrong_labels_are_what_the_student_learns_from():
    noisy = data.restrict(DIGITS, label_noise=0.5)
    clean, spoiled = trainer("ce", epochs=1).train_epoch(), trainer("ce", epochs=1, dataset=noisy).train_epoch()
    assert clean["train_loss"] != spoiled["train_loss"]
    targets = torch.cat([y for _, _, y, _ in batches_of(trainer("ce", dataset=noisy), 1)])
    assert torch.equal(targets.bincount(minlength=10), noisy.train_labels[SPLIT.train].bincount(minlength=10))


# The teacher


def test_a_cross_fitted_teacher_answers_each_image_by_the_network_that_never_saw_it():
    folds = torch.arange(1000) % 2
    networks = [make_teacher(seed).modules[0] for seed in (1, 2)]
    asked = Teacher(dataclasses.replace(make_teacher().record, fold_top1=(0.0, 0.0)), networks, folds)
    running = trainer("kd", teacher=asked, test=False)
    (pixels, *_), logits, _, _ = next(batches_of(running, 1))
    batch = first_batch(running)
    shown = next(Pipeline(DIGITS, running.run.protocol).training(0, 1, [batch])).views[0]
    for fold, seed in ((0, 1), (1, 2)):
        mine = folds[batch] == fold
        assert torch.equal(make_teacher(seed).logits(shown[mine]), logits[mine])
    assert len(pixels) == len(logits)


def test_training_changes_nothing_of_the_teacher():
    asked = make_teacher()
    (module,) = asked.modules
    before = {key: value.clone() for key, value in module.state_dict().items()}
    finish(trainer(teacher=asked))
    assert same(module.state_dict(), before)
    assert not module.training
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_a_method_without_a_teacher_never_asks_it():
    class Silent(Teacher):
        def logits(self, images, indices=None):
            raise AssertionError("asked")

    asked = make_teacher()
    with_one, without = trainer("ce", teacher=Silent(asked.record, asked.modules)), trainer("ce", teacher=None)
    assert timeless(finish(with_one)) == timeless(finish(without))


def test_a_method_that_needs_a_teacher_says_so():
    with pytest.raises(ValueError, match="method kd needs a teacher"):
        trainer("kd", teacher=None)


def test_the_points_numbers_go_before_the_methods_and_the_protocols():
    def given(**parameters):
        return trainer("loca", parameters=parameters, tau=3.0)._parameters(objectives.get("loca"))

    assert given() == {"alpha": 0.95, "tau": 3.0, "beta": 0.9, "gamma": 0.1}
    assert given(alpha=0.8, tau=2.0) == {"alpha": 0.8, "tau": 2.0, "beta": 0.9, "gamma": 0.1}
    with pytest.raises(ValueError, match="alpha"):
        trainer("kd", parameters={"alpha": 0.9})


def test_a_methods_options_come_from_the_point_alone_and_a_wrong_one_is_refused():
    """Whatever options there are: the first choice is the default, so naming it changes nothing."""
    for method in map(objectives.get, objectives.names()):
        for option in method.options:
            plain = trainer(method.name, epochs=1).train_epoch()
            for choice in option.choices:
                chosen = trainer(method.name, epochs=1, parameters={option.name: choice}).train_epoch()
                assert math.isfinite(chosen["train_loss"])
                if choice == option.choices[0]:
                    assert timeless([chosen]) == timeless([plain])
            with pytest.raises(ValueError, match=option.name):
                trainer(method.name, parameters={option.name: "no such choice"})


# When things go wrong


def test_a_loss_that_is_not_finite_names_the_epoch():
    running = trainer("ce", teacher=None, lr=1e30, epochs=4)
    with pytest.raises(NonFinite, match=r"^loss is not finite at epoch [1-4]$"):
        finish(running)


# Checkpoints


@pytest.mark.parametrize("method", objectives.names())
def test_a_run_stopped_after_any_epoch_ends_bit_identical_to_an_undisturbed_one(tmp_path, method):
    whole = trainer(method, epochs=4, milestones=(3,))
    history = finish(whole)
    for stop in range(5):
        begun = trainer(method, epochs=4, milestones=(3,))
        kept = [begun.train_epoch() for _ in range(stop)]
        begun.save(tmp_path / "checkpoint")
        resumed = trainer(method, epochs=4, milestones=(3,))
        resumed.load(tmp_path / "checkpoint")
        assert resumed.epoch == stop
        assert timeless(kept + finish(resumed)) == timeless(history)
        assert same(resumed.student_state(), whole.student_state())
        assert all(torch.equal(a, b) for a, b in zip(momenta(resumed), momenta(whole), strict=True))
        trained = [*whole.lessons.model.parameters(), *whole.objective.parameters()]
        assert len(momenta(resumed)) == len(trained)


def test_a_run_killed_after_each_epoch_in_turn_ends_bit_identical(tmp_path):
    whole = trainer(epochs=4)
    history, pieces = finish(whole), []
    trainer(epochs=4).save(tmp_path / "checkpoint")
    for _ in range(4):
        piece = trainer(epochs=4)
        piece.load(tmp_path / "checkpoint")
        pieces.append(piece.train_epoch())
        piece.save(tmp_path / "checkpoint")
    assert timeless(pieces) == timeless(history)
    assert same(piece.student_state(), whole.student_state())


def test_loading_also_sets_back_a_trainer_that_went_on(tmp_path):
    running = trainer(epochs=3)
    running.train_epoch()
    running.save(tmp_path / "checkpoint")
    first = finish(running)
    running.load(tmp_path / "checkpoint")
    assert timeless(finish(running)) == timeless(first)


def test_a_checkpoint_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path):
    running = trainer(epochs=2)
    for _ in range(2):
        running.train_epoch()
        running.save(tmp_path / "deep" / "checkpoint")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["checkpoint"]
    again = trainer(epochs=2)
    again.load(tmp_path / "deep" / "checkpoint")
    assert again.done


def test_a_save_that_fails_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch):
    running = trainer(epochs=2)
    running.train_epoch()
    running.save(tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    running.train_epoch()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainables.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        running.save(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_line_and_changes_nothing(tmp_path, kept):
    running = trainer()
    running.train_epoch()
    running.save(tmp_path / "checkpoint")
    content = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    fresh, untouched = trainer(), trainer()
    with pytest.raises(CheckpointError, match="truncated") as caught:
        fresh.load(tmp_path / "checkpoint")
    assert "\n" not in str(caught.value)
    assert fresh.epoch == 0
    assert same(fresh.student_state(), untouched.student_state())


def test_a_file_that_is_no_runs_checkpoint_is_one_line(tmp_path):
    torch.save(models.build("cnn3", 10).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="not a run's checkpoint"):
        trainer().load(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        trainer().load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"seed": 1}, "its seed is 1, not 0"),
        ({"method": "kd"}, "its method is kd, not loca"),
        ({"parameters": {"alpha": 0.8}}, "its parameters is"),
        ({"epochs": 4}, "its protocol is"),
        ({"train": SPLIT.train[:50]}, "its train_indices is"),
        ({"teacher": make_teacher(1)}, "its teacher is 1, not 0"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_the_difference_named(tmp_path, other, names):
    another = trainer(**other)
    another.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=f"another run's: {names}"):
        trainer().load(tmp_path / "checkpoint")


def test_a_checkpoint_of_another_engine_is_refused(tmp_path, monkeypatch):
    trainer().save(tmp_path / "checkpoint")
    monkeypatch.setattr(engine, "VERSION", engine.VERSION + 1)
    with pytest.raises(CheckpointError, match="written by engine"):
        trainer().load(tmp_path / "checkpoint")


def test_the_students_state_is_a_copy():
    running = trainer()
    state = running.student_state()
    for value in state.values():
        value.zero_()
    assert same(running.student_state(), trainer().student_state())


# The summary


def test_a_summary_has_last_best_and_the_test_accuracy_at_the_first_best_validation():
    history = [
        {"test_top1": 50.0, "test_top5": 80.0, "val_top1": 40.0},
        {"test_top1": 61.0, "test_top5": 85.0, "val_top1": 66.0},
        {"test_top1": 63.0, "test_top5": 88.0, "val_top1": 66.0},
        {"test_top1": 62.0, "test_top5": 87.0, "val_top1": 64.0},
    ]
    assert summary(history) == {
        "test_top1_last": 62.0,
        "test_top5_last": 87.0,
        "test_top1_best": 63.0,
        "test_top1_at_best_val": 61.0,
        "val_top1_last": 64.0,
        "val_top1_best": 66.0,
    }


def test_a_summary_has_only_what_was_measured():
    assert summary([]) == {}
    assert summary([{"train_loss": 1.0}]) == {}
    assert summary([{"val_top1": 3.0}]) == {"val_top1_last": 3.0, "val_top1_best": 3.0}
    assert set(summary([{"test_top1": 3.0, "test_top5": 9.0}])) == {
        "test_top1_last",
        "test_top5_last",
        "test_top1_best",
    }


# The package


@pytest.mark.slow
def test_a_run_trains_where_ray_optuna_mlflow_and_the_rest_of_the_service_cannot_be_imported():
    code = """
        import sys
        blocked = {"ray", "optuna", "mlflow", "pandas", "sqlalchemy", "pydantic", "study", "analysis", "search_spaces"}
        class Without:
            def __init__(self, finder):
                self.finder = finder
            def find_spec(self, name, path=None, target=None):
                return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
        sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
        import torch
        torch.set_num_threads(1)
        from trainables import calibration, data, engine, measures, models, objectives, pipeline, protocol, splits
        digits = data.load("digits")
        run = engine.RunSpec("cnn3", "ce", {}, protocol.resolve("digits-quick", epochs=1), 0)
        split = splits.make_split(digits.train_labels, split_seed=0, train_limit=100)
        print(engine.Trainer(run, digits, split.train, split.validation, None, True).train_epoch()["test_top1"])
        assert not blocked & {name.split(".")[0] for name in sys.modules}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) <= 100


@pytest.mark.slow
def test_a_teacher_of_60_digits_is_wrong_on_a_fifth_of_the_others_and_its_students_learn():
    split = splits.make_split(DIGITS.train_labels, split_seed=0, teacher_fraction=0.06)
    protocol = resolve("digits-quick")
    own = Trainer(RunSpec("cnn32", "ce", {}, protocol, 0), DIGITS, split.teacher, NO_INDICES, None, True)
    finish(own)
    module = teachers.load_into("cnn32", 10, own.student_state(), "t")
    asked = Teacher(dataclasses.replace(make_teacher().record, mean=DIGITS.mean, std=DIGITS.std), [module])
    assert 0.1 < measures.mis_instruction_ratio(Teaching(asked, Pipeline(DIGITS, protocol)), split.train, 5, 0) < 0.3
    for method, floor in (("ce", 85), ("kd", 75), ("loca", 75)):
        run = RunSpec("cnn3", method, {}, protocol, 0)
        history = finish(Trainer(run, DIGITS, split.train, NO_INDICES, asked, True))
        assert history[-1]["test_top1"] > floor
        assert history[-1]["train_loss"] < history[0]["train_loss"]
