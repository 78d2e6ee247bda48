import hashlib
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.splits import make_folds, make_split, stratified, teacher_images

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(torch.tensor)
DIGITS = torch.arange(10).repeat(100)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 5))
def test_a_sample_has_the_asked_size_and_is_sorted_without_repetition(labels, n, seed):
    sample = stratified(labels, n, seed)
    assert sample.dtype == torch.int64
    assert len(sample) == min(n, len(labels))
    assert (sample[1:] > sample[:-1]).all()
    assert ((sample >= 0) & (sample < len(labels))).all()


@settings(deadline=None)
@given(LABELS, st.integers(0, 100), st.integers(0, 5))
def test_every_class_is_within_one_image_of_its_share(labels, n, seed):
    sample = labels[stratified(labels, n, seed)]
    for label in range(7):
        share = (labels == label).sum().item() * min(n, len(labels)) / len(labels)
        assert abs((sample == label).sum().item() - share) < 1


def test_a_sample_smaller_than_the_classes_takes_no_class_twice():
    for seed in range(20):
        assert len(set(DIGITS[stratified(DIGITS, 7, seed)].tolist())) == 7


def test_which_class_gets_the_odd_image_depends_on_the_seed():
    assert {DIGITS[stratified(DIGITS, 1, seed)].item() for seed in range(200)} == set(range(10))


def test_a_sample_depends_on_its_seed_alone():
    assert torch.equal(stratified(DIGITS, 50, 1), stratified(DIGITS, 50, 1))
    assert not torch.equal(stratified(DIGITS, 50, 1), stratified(DIGITS, 50, 2))


@settings(deadline=None)
@given(
    st.floats(0, 0.5),
    st.one_of(st.none(), st.floats(0.01, 0.9)),
    st.one_of(st.none(), st.integers(1, 2000)),
    st.integers(0, 3),
)
def test_the_parts_never_overlap_and_without_a_limit_they_cover_everything(validation, teacher, limit, seed):
    split = make_split(
        DIGITS, split_seed=seed, validation_fraction=validation, teacher_fraction=teacher, train_limit=limit
    )
    everything = torch.cat([split.train, split.validation, split.teacher])
    assert len(everything) == len(everything.unique())
    if limit is None:
        assert len(everything) == len(DIGITS)
    else:
        assert len(split.train) == min(limit, 1000 - len(split.validation) - len(split.teacher))


def test_fractions_are_of_what_they_say():
    split = make_split(DIGITS, split_seed=0, validation_fraction=0.1, teacher_fraction=0.5)
    assert (len(split.validation), len(split.teacher), len(split.train)) == (100, 450, 450)
    for part in (split.validation, split.teacher, split.train):
        assert DIGITS[part].bincount().tolist() == [len(part) // 10] * 10


def test_a_limit_leaves_the_validation_and_the_teachers_part_alone():
    whole, cut = (
        make_split(DIGITS, split_seed=3, validation_fraction=0.2, teacher_fraction=0.3, train_limit=limit)
        for limit in (None, 50)
    )
    assert torch.equal(whole.validation, cut.validation)
    assert torch.equal(whole.teacher, cut.teacher)
    assert set(cut.train.tolist()) < set(whole.train.tolist())


def test_the_final_stage_returns_the_validation_part_to_the_student_and_keeps_the_teachers():
    search, final = (
        make_split(DIGITS, split_seed=3, validation_fraction=0.2, teacher_fraction=0.3, keep_validation_in_train=final)
        for final in (False, True)
    )
    assert len(final.validation) == 0
    assert torch.equal(final.teacher, search.teacher)
    assert torch.equal(final.train, torch.cat([search.train, search.validation]).sort().values)


def test_a_split_depends_on_its_seed():
    one, again, other = (make_split(DIGITS, split_seed=seed, validation_fraction=0.1) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest


def test_the_digest_is_of_the_students_and_the_validation_part_and_not_of_the_teachers():
    split = make_split(DIGITS, split_seed=0, validation_fraction=0.1, teacher_fraction=0.5)
    sha = hashlib.sha256()
    for part in (split.train, split.validation):
        sha.update(struct.pack(f"<q{len(part)}q", len(part), *part.tolist()))
    assert split.digest == sha.hexdigest()


@pytest.mark.parametrize("moved", [0, 1])
def test_the_digest_tells_one_part_from_the_other(moved):
    labels = torch.zeros(4, dtype=torch.int64)
    none = make_split(labels, split_seed=moved)
    half = make_split(labels, split_seed=moved, validation_fraction=0.5)
    assert none.digest != half.digest


WITH_ABSENT = st.lists(st.integers(-1, 5), min_size=1, max_size=80).map(torch.tensor)


@settings(deadline=None)
@given(WITH_ABSENT, st.integers(0, 100), st.integers(0, 5))
def test_images_that_are_not_part_of_the_data_belong_to_nobody(labels, n, seed):
    assert (labels[stratified(labels, n, seed)] >= 0).all()
    split = make_split(labels, split_seed=seed, validation_fraction=0.2, teacher_fraction=0.3)
    together = torch.cat([split.train, split.validation, split.teacher]).sort().values
    assert torch.equal(together, torch.nonzero(labels >= 0).flatten())


@settings(deadline=None)
@given(WITH_ABSENT, st.integers(2, 7), st.integers(0, 5))
def test_folds_are_of_one_size_and_every_class_is_spread_evenly(labels, k, seed):
    folds = make_folds(labels, k, seed)
    assert torch.equal(folds == -1, labels < 0)
    sizes = torch.bincount(folds[folds >= 0], minlength=k)
    assert sizes.max() - sizes.min() <= 1
    for label in range(6):
        of_class = torch.bincount(folds[labels == label], minlength=k)
        assert of_class.max() - of_class.min() <= 1
    assert torch.equal(folds, make_folds(labels, k, seed))


@settings(deadline=None)
@given(LABELS, st.integers(2, 5), st.floats(0, 0.5))
def test_no_cross_fitted_teacher_learns_from_its_own_fold_or_from_the_validation_part(labels, k, validation):
    split = {"split_seed": 3, "validation_fraction": validation, "keep_validation_in_train": True}
    unseen = make_split(labels, split_seed=3, validation_fraction=validation).validation
    folds = make_folds(labels, k, 3)
    for fold in range(k):
        images = teacher_images(labels, split, "cross_fitted", k, fold)
        assert not (folds[images] == fold).any()
        assert not torch.isin(images, unseen).any()
        assert len(images) == ((folds != fold).sum() - (folds[unseen] != fold).sum())


def test_a_seen_teacher_learns_from_everything_and_a_held_out_one_from_its_part():
    split = {"split_seed": 0, "teacher_fraction": 0.5}
    assert torch.equal(teacher_images(DIGITS, split, "seen"), torch.arange(1000))
    assert torch.equal(teacher_images(DIGITS, split, "held_out"), make_split(DIGITS, **split).teacher)
