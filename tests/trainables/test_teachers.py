import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch

from trainables import data, models, teachers
from trainables.measures import evaluate, mis_instruction_ratio
from trainables.pipeline import Pipeline
from trainables.protocol import resolve
from trainables.teachers import CheckpointError, Teacher, TeacherRecord, content_hash, load_into, read_state_dict
from trainables.teaching import Teaching

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def weights(model="cnn3", num_classes=10, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build(model, num_classes).state_dict()


def record_of(state_dict, **changes):
    record = TeacherRecord(
        name="small",
        hash="",
        dataset="digits",
        dataset_hash="d" * 64,
        model="cnn3",
        num_classes=10,
        mean=(0.25,),
        std=(0.5,),
        trained_on="part",
        indices_digest="e" * 64,
        test_top1=80.0,
        test_top5=99.0,
        mis_instruction_ratio=0.2,
        ratio_on="5 views of 940 images",
        origin="trained",
        created="2026-01-01T00:00:00Z",
    )
    record = dataclasses.replace(record, **changes)
    return dataclasses.replace(record, hash=content_hash(record.model, record.mean, record.std, state_dict))


def teacher(**changes):
    state_dict = weights()
    return Teacher(record_of(state_dict, **changes), [load_into("cnn3", 10, state_dict, "a test")])


def digits(n=40):
    loaded = data.load("digits")
    return loaded.train_images.pixels[:n], loaded.train_labels[:n]


# Checkpoints


def wrapped(state_dict, how):
    if how == "module.":
        return {f"module.{key}": value for key, value in state_dict.items()}
    if how == "Parameter":
        return {key: torch.nn.Parameter(v) if v.is_floating_point() else v for key, v in state_dict.items()}
    return {how: state_dict, "epoch": 3} if how else state_dict


@pytest.mark.parametrize("how", ["", "model", "state_dict", "module.", "Parameter"])
def test_a_state_dict_is_read_out_of_its_usual_wrappings(tmp_path, how):
    expected = weights()
    torch.save(wrapped(expected, how), tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) and not found[key].requires_grad for key in expected)


class Code:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return (os.mkdir, (str(self.made),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, zipped):
    content = {"conv": torch.zeros(2), "more": Code(tmp_path / "it ran")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w.pth: it holds pickled code") as caught:
        read_state_dict(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_line(tmp_path, zipped, kept):
    file = tmp_path / "w.pth"
    torch.save(weights(), file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"w.pth: truncated, or not a checkpoint") as caught:
        read_state_dict(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "found: a list"),
        ({}, "found: a dict"),
        ({"epoch": 3, "loss": 0.1}, "found: a dict of epoch, loss"),
        (torch.zeros(3), "found: a Tensor"),
    ],
)
def test_something_other_than_named_tensors_is_said_to_be_so(tmp_path, content, says):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=says):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"text", pickle.dumps({"a": 1}, protocol=2), b"PK\x03\x04junk"])
def test_a_file_of_another_kind_is_one_line(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"w.pth: there is no such file"):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path)


def test_weights_load_into_their_own_model():
    expected = weights()
    loaded = load_into("cnn3", 10, expected, "x").state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_checkpoint_of_another_depth_names_the_keys():
    with pytest.raises(
        CheckpointError, match=r"x: not a checkpoint of resnet8; keys: \d+ unexpected \(layer1\.1\.conv1"
    ):
        load_into("resnet8", 10, weights("resnet14"), "x")
    with pytest.raises(CheckpointError, match=r"x: not a checkpoint of resnet14; keys: \d+ missing \(layer1\.1\.conv1"):
        load_into("resnet14", 10, weights("resnet8"), "x")


def test_a_checkpoint_of_another_width_names_shapes():
    with pytest.raises(CheckpointError, match=r"\d+ of another shape \(.*\(32, 1, 3, 3\) for \(3, 1, 3, 3\)"):
        load_into("cnn3", 10, weights("cnn32"), "x")


def test_a_checkpoint_for_other_classes_says_how_many():
    with pytest.raises(CheckpointError, match=r"^x: it tells 20 classes apart; wanted: 10$"):
        load_into("cnn3", 10, weights(num_classes=20), "x")


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="resnet20"):
        load_into("resnet-20", 10, {}, "x")


# The hash


def test_the_hash_does_not_depend_on_order_or_memory_layout():
    state_dict = weights()
    other = {key: state_dict[key].clone() for key in reversed(state_dict)}
    other = {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in other.items()}
    assert content_hash("cnn3", (0.5,), (0.2,), state_dict) == content_hash("cnn3", (0.5,), (0.2,), other)


def test_the_hash_notices_each_thing_that_decides_the_logits():
    state_dict = weights()
    nudged = dict(state_dict)
    key = next(iter(nudged))
    nudged[key] = nudged[key].clone()
    nudged[key].view(-1)[0] += 1e-6
    variants = [
        ("cnn3", (0.5,), (0.2,), state_dict),
        ("cnn32", (0.5,), (0.2,), state_dict),
        ("cnn3", (0.6,), (0.2,), state_dict),
        ("cnn3", (0.5,), (0.3,), state_dict),
        ("cnn3", (0.5,), (0.2,), nudged),
    ]
    assert len({content_hash(*variant) for variant in variants}) == len(variants)


# The folder


def test_what_is_saved_is_loaded_by_name_and_by_hash(tmp_path):
    state_dict = weights()
    record = record_of(state_dict)
    folder = teachers.save(tmp_path, record, state_dict, torch.tensor([3, 5, 8]))
    assert folder == tmp_path / "teachers" / record.hash[:16]
    images, _ = digits()
    for reference in ("small", record.hash, record.hash[:6]):
        loaded = teachers.load(tmp_path, reference)
        assert loaded.record == record
        assert torch.equal(loaded.logits(images), teacher().logits(images))
        assert teachers.trained_indices(tmp_path, reference).tolist() == [3, 5, 8]
    assert teachers.list_records(tmp_path) == [record]
    assert [f for f in folder.parent.iterdir() if f != folder] == []


def test_a_teacher_whose_training_images_are_not_known_has_no_indices(tmp_path):
    state_dict = weights()
    teachers.save(tmp_path, record_of(state_dict), state_dict)
    assert teachers.trained_indices(tmp_path, "small") is None


def test_saving_again_replaces_the_record_and_the_indices(tmp_path):
    state_dict = weights()
    teachers.save(tmp_path, record_of(state_dict), state_dict, torch.tensor([1]))
    renamed = record_of(state_dict, name="other")
    teachers.save(tmp_path, renamed, state_dict)
    assert teachers.list_records(tmp_path) == [renamed]
    assert teachers.trained_indices(tmp_path, "other") is None


def test_a_home_without_teachers_lists_none(tmp_path):
    assert teachers.list_records(tmp_path) == []


def test_an_unknown_teacher_is_answered_with_the_nearest(tmp_path):
    state_dict = weights()
    teachers.save(tmp_path, record_of(state_dict), state_dict)
    with pytest.raises(CheckpointError, match="unknown teacher 'smal': did you mean small"):
        teachers.load(tmp_path, "smal")


def test_a_name_that_two_teachers_have_asks_for_a_hash(tmp_path):
    records = []
    for seed in (0, 1):
        state_dict = weights(seed=seed)
        records.append(record_of(state_dict))
        teachers.save(tmp_path, records[-1], state_dict)
    with pytest.raises(CheckpointError, match=r"'small' means any of .*: name one by its hash"):
        teachers.load(tmp_path, "small")
    assert teachers.load(tmp_path, records[1].hash[:16]).record == records[1]


def test_weights_changed_on_disk_are_noticed(tmp_path):
    state_dict = weights()
    folder = teachers.save(tmp_path, record_of(state_dict), state_dict)
    torch.save(weights(seed=1), folder / "weights.pt")
    with pytest.raises(CheckpointError, match=r"teacher small: .*weights.pt is damaged"):
        teachers.load(tmp_path, "small")


def test_a_damaged_record_says_what_to_remove(tmp_path):
    state_dict = weights()
    folder = teachers.save(tmp_path, record_of(state_dict), state_dict)
    (folder / "teacher.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"teacher.json is damaged .*: remove its folder"):
        teachers.list_records(tmp_path)


# Answering


def test_a_teacher_normalises_by_its_own_mean_and_std():
    images, _ = digits()
    net = models.build("cnn3", 10).eval()
    net.load_state_dict(weights())
    with torch.no_grad():
        expected = net((images.float() / 255 - 0.25) / 0.5)
    torch.testing.assert_close(teacher().logits(images), expected, rtol=1e-5, atol=1e-5)


def test_asking_a_teacher_builds_no_graph_and_changes_none_of_its_state():
    asked = teacher()
    before = {key: value.clone() for key, value in asked.modules[0].state_dict().items()}
    logits = asked.logits(digits()[0])
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in asked.modules[0].parameters())
    assert all(torch.equal(value, before[key]) for key, value in asked.modules[0].state_dict().items())


def test_a_teachers_answer_to_an_image_does_not_depend_on_the_others():
    images, _ = digits()
    together = teacher().logits(images)
    alone = torch.cat([teacher().logits(images[i : i + 1]) for i in range(len(images))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# Cross-fitted sets


def cross_fitted(k=3):
    """A set of k small networks and the folds that they answer, of 40 training images, two of them no part of them."""
    states = [weights(seed=seed) for seed in range(k)]
    folds = torch.arange(40) % k
    folds[[4, 9]] = -1
    record = record_of(states[0], trained_on="folds", fold_top1=tuple(80.0 + i for i in range(k)))
    hashes = [content_hash(record.model, record.mean, record.std, state) for state in states]
    record = dataclasses.replace(record, hash=teachers.cross_fitted_hash(hashes, folds))
    return record, {"members": states, "folds": folds}


def assembled(k=3):
    record, content = cross_fitted(k)
    modules = [load_into("cnn3", 10, state, "a test") for state in content["members"]]
    return Teacher(record, modules, content["folds"])


def test_each_image_is_answered_by_the_network_of_its_own_fold():
    images, _ = digits()
    asked = assembled()
    for indices in (torch.tensor([0, 1, 2, 3, 30, 38]), torch.tensor([7]), torch.tensor([12, 3, 12])):
        answers = asked.logits(images[indices], indices)
        for answer, index in zip(answers, indices.tolist(), strict=True):
            single = Teacher(asked.record, [asked.modules[index % 3]])
            torch.testing.assert_close(answer, single.logits(images[[index]])[0], rtol=1e-4, atol=1e-5)


def test_an_image_of_the_test_set_is_answered_by_the_mean_of_all_networks():
    images, _ = digits()
    asked = assembled()
    singles = [Teacher(asked.record, [module]).logits(images) for module in asked.modules]
    torch.testing.assert_close(asked.logits(images), sum(singles) / 3, rtol=1e-5, atol=1e-5)


def test_a_set_is_kept_and_loaded_as_one_teacher(tmp_path):
    record, content = cross_fitted()
    teachers.save(tmp_path, record, content, torch.arange(40))
    loaded = teachers.load(tmp_path, "small")
    assert (loaded.record, loaded.record.folds) == (record, 3)
    images, _ = digits()
    assert torch.equal(loaded.logits(images, torch.arange(40) % 3), assembled().logits(images, torch.arange(40) % 3))


def test_the_hash_of_a_set_notices_who_answers_which_image():
    record, content = cross_fitted()
    other = content["folds"].roll(1)
    hashes = [content_hash("cnn3", record.mean, record.std, state) for state in content["members"]]
    assert teachers.cross_fitted_hash(hashes, other) != record.hash
    assert teachers.cross_fitted_hash(hashes[::-1], content["folds"]) != record.hash


# Files that travel


@pytest.mark.parametrize("folds", [0, 3])
def test_a_teacher_travels_to_another_home_with_all_that_is_known_of_it(tmp_path, folds):
    if folds:
        record, content = cross_fitted(folds)
    else:
        content = weights()
        record = record_of(content)
    teachers.save(tmp_path / "a", record, content, torch.tensor([1, 2, 3]))
    teachers.export_file(tmp_path / "a", "small", tmp_path / "t.pt")
    assert teachers.is_teacher_file(tmp_path / "t.pt")
    assert teachers.import_file(tmp_path / "b", tmp_path / "t.pt") == record
    assert teachers.load(tmp_path / "b", record.hash).record == record
    assert teachers.trained_indices(tmp_path / "b", "small").tolist() == [1, 2, 3]
    assert teachers.import_file(tmp_path / "b", tmp_path / "t.pt") == record  # again: nothing changes


def test_a_plain_checkpoint_is_no_teachers_file(tmp_path):
    torch.save(weights(), tmp_path / "w.pt")
    assert not teachers.is_teacher_file(tmp_path / "w.pt")


def test_a_teachers_file_that_was_changed_on_its_way_is_refused_and_nothing_is_kept(tmp_path):
    content = weights()
    teachers.save(tmp_path / "a", record_of(content), content)
    teachers.export_file(tmp_path / "a", "small", tmp_path / "t.pt")
    travelled = torch.load(tmp_path / "t.pt", weights_only=True)
    for changed in ({"weights": weights(seed=1)}, {"record": {}}, {"weights": None}):
        torch.save({**travelled, **changed}, tmp_path / "t.pt")
        with pytest.raises(CheckpointError, match="damaged") as caught:
            teachers.import_file(tmp_path / "b", tmp_path / "t.pt")
        assert "\n" not in str(caught.value)
    assert teachers.list_records(tmp_path / "b") == []


def test_a_name_that_is_taken_by_another_teacher_is_refused(tmp_path):
    for home, seed in (("a", 0), ("b", 1)):
        content = weights(seed=seed)
        teachers.save(tmp_path / home, record_of(content), content)
    teachers.export_file(tmp_path / "a", "small", tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match="small is already the name of"):
        teachers.import_file(tmp_path / "b", tmp_path / "t.pt")


CHECKPOINT = SHARED / "data" / "teachers" / "cifar100_resnet56.pth"


@pytest.mark.slow
@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="needs shared/data/teachers and shared/data/cifar100")
def test_the_real_resnet56_has_its_measured_accuracy_and_hardly_mis_instructs_on_its_training_images(tmp_path):
    dataset = data.load("cifar100", SHARED / "data" / "cifar100", tmp_path)
    state_dict = read_state_dict(CHECKPOINT)
    record = record_of(state_dict, model="resnet56", num_classes=100, mean=dataset.mean, std=dataset.std)
    asked = Teacher(record, [load_into("resnet56", 100, state_dict, "resnet56")])
    pipeline = Pipeline(dataset, resolve("crd-240"))
    top1, top5 = evaluate(asked.logits, pipeline.evaluation("test", None))
    assert top1 == pytest.approx(72.61, abs=0.05)
    assert top1 < top5 < 100
    sample = torch.arange(0, 50_000, 25)
    assert mis_instruction_ratio(Teaching(asked, pipeline), sample, 1, 0) < 0.01
