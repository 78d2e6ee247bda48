import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.protocol import PROTOCOLS, names, resolve


def test_crd_240_is_the_papers_protocol():
    crd = resolve("crd-240")
    assert (crd.epochs, crd.batch_size, crd.momentum, crd.nesterov, crd.weight_decay) == (240, 64, 0.9, False, 5e-4)
    assert (crd.tau, crd.beta, crd.gamma, crd.pad, crd.flip) == (4, 0.9, 0.1, 4, True)
    lrs = {epoch: crd.lr_at(epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)}
    expected = {1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    assert lrs == pytest.approx(expected)
    assert crd.changes() == []


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(24, (16, 19, 22)), (120, (76, 91, 106)), (480, (301, 361, 421)), (1, ()), (2, (2,)), (10, (7, 9, 10))],
)
def test_changed_epochs_move_the_milestones_in_proportion_and_drop_those_beyond_the_end(epochs, milestones):
    assert resolve("crd-240", epochs=epochs).milestones == milestones


@settings(deadline=None)
@given(st.sampled_from(names()), st.integers(1, 1000))
def test_however_many_epochs_the_learning_rate_never_rises_and_starts_at_lr(base, epochs):
    protocol = resolve(base, epochs=epochs)
    rates = [protocol.lr_at(epoch) for epoch in range(1, epochs + 1)]
    assert rates[0] == protocol.lr
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))


def test_given_milestones_stay_where_they_are():
    assert resolve("crd-240", epochs=24, milestones=[2, 5]).milestones == (2, 5)


@pytest.mark.parametrize("base", names())
def test_a_resolved_protocol_resolves_to_itself(base):
    short = resolve(base, epochs=3, lr=0.01)
    assert resolve(base, **short.identity()) == short


def test_changes_name_each_field_that_differs_from_the_base():
    assert resolve("crd-240", epochs=24, lr=0.01).changes() == [
        ("epochs", 240, 24),
        ("lr", 0.05, 0.01),
        ("milestones", (151, 181, 211), (16, 19, 22)),
        ("warmup_dkd", 20.0, 2.0),
        ("warmup_ctkd", 10.0, 1.0),
    ]


def test_a_light_student_has_the_papers_lower_rate_which_is_no_change_of_the_protocol():
    light = resolve("crd-240", "mobilenet_v2")
    assert light.lr == 0.01
    assert light.changes("mobilenet_v2") == []
    assert resolve("crd-240", "shufflenet_v1", lr=0.02).changes("shufflenet_v1") == [("lr", 0.01, 0.02)]
    assert resolve("crd-240", "resnet20").lr == 0.05


def test_imagenet_100_is_the_papers_protocol():
    imagenet = resolve("imagenet-100")
    assert (imagenet.epochs, imagenet.batch_size, imagenet.weight_decay) == (100, 512, 1e-4)
    assert (imagenet.tau, imagenet.beta, imagenet.gamma) == (1, 0.5, 0.5)
    assert (imagenet.views, imagenet.image_size, imagenet.eval_resize, imagenet.flip) == (
        "random_resized_crop",
        224,
        256,
        True,
    )
    lrs = {epoch: imagenet.lr_at(epoch) for epoch in (1, 30, 31, 60, 61, 90, 91, 100)}
    expected = {1: 0.2, 30: 0.2, 31: 0.02, 60: 0.02, 61: 2e-3, 90: 2e-3, 91: 2e-4, 100: 2e-4}
    assert lrs == pytest.approx(expected)


def test_warm_ups_scale_with_the_epochs_unless_they_are_given():
    assert resolve("crd-240").warmup_dkd == 20
    assert resolve("crd-240", epochs=120).warmup_dkd == 10
    assert resolve("crd-240", epochs=6).warmup_dkd == 1
    assert resolve("crd-240", epochs=120, warmup_dkd=5).warmup_dkd == 5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"views": "cutout"}, "views"),
        ({"views": "random_resized_crop"}, "views"),
        ({"views": "random_resized_crop", "image_size": 64, "eval_resize": 32}, "eval_resize"),
        ({"image_size": 0}, "image_size"),
        ({"precision": "int4"}, "precision"),
        ({"drop_last": 1}, "drop_last"),
    ],
)
def test_views_and_precision_that_cannot_be_are_refused(fields, says):
    with pytest.raises(ValueError, match=f"protocol.{says}"):
        resolve("crd-240", **fields)


def test_the_identity_is_every_field_but_the_bases_name():
    fields = {field.name for field in dataclasses.fields(PROTOCOLS["crd-240"])} - {"base", "task"}
    images, text = resolve("crd-240").identity(), resolve("dolly-10").identity()
    # Each task has its own; what came later is left out where it is what everything had before.
    assert set(images) | set(text) == fields
    assert {"views", "pad", "momentum"} <= set(images) - set(text)
    assert {"template", "max_tokens", "optimiser"} <= set(text) - set(images)
    assert "optimiser" in resolve("crd-240", optimiser="adamw").identity()
    assert images["lr"] == 0.05


def test_a_whole_number_for_a_real_field_makes_no_other_identity():
    assert repr(resolve("crd-240", tau=4).identity()) == repr(resolve("crd-240", tau=4.0).identity())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", 0),
        ("lr", 0),
        ("lr", float("nan")),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("nesterov", 1),
        ("weight_decay", -1e-4),
        ("milestones", [20, 10]),
        ("milestones", [0]),
        ("milestones", 10),
        ("milestones", [300]),
        ("lr_decay", 0),
        ("tau", 0),
        ("tau", float("inf")),
        ("beta", -0.1),
        ("gamma", None),
        ("pad", -1),
        ("flip", "yes"),
        ("precision", "float16"),
    ],
)
def test_a_value_that_will_not_do_is_one_line_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"protocol.{field}") as caught:
        resolve("crd-240", **{field: value})
    assert "\n" not in str(caught.value)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="nesterov"):
        resolve("crd-240", nesterov=True, momentum=0)
    assert resolve("crd-240", nesterov=True).nesterov


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean crd-240"):
        resolve("crd-24")
    with pytest.raises(ValueError, match="did you mean weight_decay"):
        resolve("crd-240", weight_decai=1)
    with pytest.raises(ValueError, match="unknown field"):
        resolve("crd-240", identity=1)
