"""A teacher's answers: the same from its store as from itself, asked once, and shared between processes."""

import dataclasses
import multiprocessing

import pytest
import torch
from torch import nn

from trainables import data, engine, models, splits, teachers
from trainables.logits import LogitStore, key_of
from trainables.pipeline import Pipeline
from trainables.protocol import resolve
from trainables.teachers import Teacher, TeacherRecord
from trainables.teaching import BATCH, Teaching
from trainables.views import CropFlip

DIGITS = data.load("digits")
PROTOCOL = resolve("digits-quick", epochs=3, batch_size=48, milestones=())
TRAIN = splits.stratified(DIGITS.train_labels, 300, seed=1).sort().values


def record_of(**fields):
    values = dict.fromkeys((field.name for field in dataclasses.fields(TeacherRecord)), "")
    given = {"num_classes": 10, "mean": DIGITS.mean, "std": DIGITS.std, "fold_top1": ()}
    return TeacherRecord(**(values | given | fields))


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build("cnn3", 10)


def teacher(hash="a" * 64):
    return Teacher(record_of(hash=hash), [network()])


def store_in(folder, protocol=PROTOCOL, dtype="float32", hash="a" * 64):
    return LogitStore(folder, key_of(hash, DIGITS, protocol, dtype, "cpu"))


def trained(store, method="loca", protocol=PROTOCOL, seed=0, asked=None, **parameters):
    run = engine.RunSpec("cnn3", method, parameters, protocol, seed=seed)
    return engine.Trainer(run, DIGITS, TRAIN, TRAIN[:0], asked or teacher(), True, store=store)


def met(seed):
    """What a run sees in its three epochs: the different views of each image."""
    views = CropFlip(PROTOCOL.pad, PROTOCOL.flip)
    drawn = [(TRAIN * views.count + views.view_ids(seed, epoch, TRAIN)).tolist() for epoch in (1, 2, 3)]
    return set().union(*drawn)


def finished(trainer):
    history = []
    while not trainer.done:
        metrics = trainer.train_epoch()
        history.append({name: value for name, value in metrics.items() if name != "epoch_seconds"})
    return history, trainer.student_state()


def same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][key], other[1][key]) for key in one[1])


@pytest.mark.parametrize("method", ["kd", "loca", "loca_dkd", "ctkd", "kd_ls", "mlkd"])
def test_a_run_from_stored_logits_is_that_of_an_online_teacher_to_the_last_bit(tmp_path, method):
    """Cold, when its rows are computed on the way, and warm, when they are there."""
    online = finished(trained(None, method))
    cold, warm = trained(store_in(tmp_path), method), trained(store_in(tmp_path), method)
    assert same(finished(cold), online)
    assert same(finished(warm), online)
    # A strong view cannot be stored. With padding 1 an image has nine weak ones, and some come twice in three epochs.
    strong = 3 * 300 if method == "mlkd" else 0
    assert (cold.lessons.teaching.asked, warm.lessons.teaching.asked) == (strong + len(met(0)), strong)


def test_the_stored_logits_of_another_batch_size_and_part_are_the_same(tmp_path):
    protocol = resolve("digits-quick", epochs=3, batch_size=17, milestones=())
    online = finished(trained(None, "loca", protocol))
    finished(trained(store_in(tmp_path), "kd"))  # batches of 48
    warm = trained(store_in(tmp_path), "loca", protocol)
    assert same(finished(warm), online)
    assert warm.lessons.teaching.asked == 0
    all_images = Teaching(teacher(), Pipeline(DIGITS, PROTOCOL), store_in(tmp_path))
    all_images.epoch(0, 1, torch.arange(len(DIGITS.train_labels)))
    assert all_images.asked == len(DIGITS.train_labels) - 300


def test_runs_of_other_seeds_fill_what_they_meet_first(tmp_path):
    finished(trained(store_in(tmp_path)))
    other = trained(store_in(tmp_path), seed=1)
    finished(other)
    assert other.lessons.teaching.asked == len(met(1) - met(0)) > 0


def test_a_teacher_whose_answers_are_stored_is_not_even_read(tmp_path):
    finished(trained(store_in(tmp_path)))

    def read():
        raise AssertionError("read")

    unread = Teacher.lazy(record_of(hash="a" * 64), read)
    finished(trained(store_in(tmp_path), asked=unread, alpha=0.7))
    with pytest.raises(AssertionError, match="read"):
        finished(trained(None, asked=unread))


def test_torn_rows_are_asked_again_and_the_run_ends_the_same(tmp_path):
    online = finished(trained(None))
    store = store_in(tmp_path)
    finished(trained(store))
    rows = store.folder / "rows.bin"
    content = bytearray(rows.read_bytes())
    for at in range(100, len(content), 2_000):
        content[at] ^= 0x10
    rows.write_bytes(content)
    torn = trained(store_in(tmp_path))
    assert same(finished(torn), online)
    assert 0 < torn.lessons.teaching.asked < len(met(0))


def test_a_full_disk_costs_time_and_changes_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainables.logits.os.pwrite", full)
    trainer = trained(store_in(tmp_path))
    assert same(finished(trainer), finished(trained(None)))
    assert trainer.lessons.teaching.asked == 900


def test_a_run_resumed_with_a_store_ends_as_one_that_was_not_interrupted_without(tmp_path):
    online = finished(trained(None))
    first = trained(store_in(tmp_path / "a"))
    first.train_epoch()
    first.save(tmp_path / "checkpoint.pt")
    second = trained(store_in(tmp_path / "b"))
    second.load(tmp_path / "checkpoint.pt")
    history, state = finished(second)
    assert (history, True) == (online[0][1:], all(torch.equal(state[key], online[1][key]) for key in state))


def test_half_precision_moves_a_logit_by_its_rounding_only(tmp_path):
    exact, half = (
        Teaching(teacher(), Pipeline(DIGITS, PROTOCOL), store_in(tmp_path, dtype=dtype)).epoch(0, 1, TRAIN)
        for dtype in ("float32", "float16")
    )
    assert torch.equal(half[0], exact[0].half().float())
    online, cold, warm = (
        finished(trained(store, alpha=0.9)) for store in (None, *(store_in(tmp_path, dtype="float16"),) * 2)
    )
    assert same(cold, warm)  # what was just computed is rounded too
    assert cold[0][0]["train_loss"] == pytest.approx(online[0][0]["train_loss"], rel=1e-3)


def test_a_cross_fitted_teachers_answers_are_stored_by_image(tmp_path):
    folds = torch.arange(len(DIGITS.train_labels)) % 2
    asked = Teacher(record_of(hash="c" * 64, fold_top1=(0.0, 0.0)), [network(1), network(2)], folds)
    teaching = Teaching(asked, Pipeline(DIGITS, PROTOCOL), store_in(tmp_path, hash="c" * 64))
    indices = torch.arange(0, 100)
    logits, _ = teaching.epoch(0, 1, indices)
    (shown,) = Pipeline(DIGITS, PROTOCOL).training(0, 1, [indices])
    for fold, seed in ((0, 1), (1, 2)):
        alone = Teacher(record_of(), [network(seed)]).logits(shown.views[0], batch=BATCH)
        assert torch.equal(logits[folds[:100] == fold], alone[folds[:100] == fold])
    assert torch.equal(teaching.epoch(0, 1, indices)[0], logits)
    assert teaching.asked == 100


QUICK = ("cnn3", "resnet8", "shufflenet_v2")
NETWORKS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in models.names()
    if models.get(name).input_shape[1] <= 32
]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_answer_depends_on_the_view_alone_whatever_else_is_asked(name):
    """On one thread, in batches of one size: what makes stored and fresh answers equal to the last bit."""
    shape = models.get(name).input_shape
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = models.build(name, 10)
    asked = Teacher(record_of(mean=(0.5,) * shape[0], std=(0.3,) * shape[0]), [module])
    images = torch.randint(0, 256, (BATCH + 6, *shape), generator=draw, dtype=torch.uint8)
    order = torch.randperm(len(images), generator=draw)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        logits = asked.logits(images, batch=BATCH)
        assert torch.equal(asked.logits(images[order], batch=BATCH), logits[order])
        assert torch.equal(asked.logits(images[5:8], batch=BATCH), logits[5:8])
    finally:
        torch.set_num_threads(threads)


def test_images_that_do_not_decode_are_left_out_and_asked_about_by_nobody(tmp_path):
    """Such images are skipped by the pipeline; here two of them are hidden from it."""

    class Hiding(Pipeline):
        def training(self, seed, epoch, batches, kinds=("weak",)):
            hidden = TRAIN[[3, 200]]
            return super().training(seed, epoch, [batch[~torch.isin(batch, hidden)] for batch in batches], kinds)

    for store in (None, store_in(tmp_path)):
        teaching = Teaching(teacher(), Hiding(DIGITS, PROTOCOL), store)
        for _ in range(2):
            _, there = teaching.epoch(0, 1, TRAIN)
            assert torch.nonzero(~there).flatten().tolist() == [3, 200]
        assert teaching.asked == (298 if store else 2 * 298)


class Counting(nn.Module):
    """Counts, in a file that processes share, how many images it is asked about."""

    def __init__(self, module, file):
        super().__init__()
        self.module, self.file = module, file

    def forward(self, images):
        with open(self.file, "ab") as file:
            file.write(b"." * len(images))
        return self.module(images)


def _asks(root, file, ready, answers):
    torch.set_num_threads(1)
    asked = Teacher(record_of(hash="a" * 64), [Counting(network(), file)])
    teaching = Teaching(asked, Pipeline(DIGITS, PROTOCOL), store_in(root))
    indices = torch.arange(len(DIGITS.train_labels))
    ready.wait()
    logits, there = teaching.epoch(0, 1, indices)
    answers.put((teaching.asked, bool(there.all()), logits.double().sum().item()))


@pytest.mark.slow
def test_processes_that_need_the_same_answers_at_once_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("trainables.teaching._CLAIMED", 64)
    context = multiprocessing.get_context("fork")  # so that the setting holds in the other processes
    ready, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_asks, args=(tmp_path, tmp_path / "count", ready, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(whole for _, whole, _ in found)
    assert len({total for _, _, total in found}) == 1
    # Nothing is asked twice.
    assert sum(asked for asked, _, _ in found) == len(DIGITS.train_labels)


def test_a_lazy_teacher_is_read_from_its_folder_when_it_is_asked(tmp_path):
    state = network().state_dict()
    digest = teachers.content_hash("cnn3", DIGITS.mean, DIGITS.std, state)
    fields = {"name": "lazy", "hash": digest, "model": "cnn3", "test_top1": 0.0, "test_top5": 0.0}
    record = record_of(**fields, mis_instruction_ratio=0.0)
    teachers.save(tmp_path, record, state)
    loaded = teachers.load(tmp_path, "lazy", lazy=True)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(loaded.logits(images), teachers.load(tmp_path, "lazy").logits(images))
    damaged = teachers.load(tmp_path, "lazy", lazy=True)
    next((tmp_path / "teachers").glob("*/weights.pt")).write_bytes(b"")
    with pytest.raises(teachers.CheckpointError, match="truncated"):
        damaged.logits(images)
