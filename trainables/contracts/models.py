"""What every model must do, as a test class: ours pass it, and a model of one's own is held to it in three lines.

    from trainables.contracts.models import ModelContract

    class TestMyNet(ModelContract):
        names = ["my_package.nets:my_net"]

Needs pytest, and is imported by tests only.
"""

import copy
import io
import re
from collections.abc import Sequence
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from trainables import models
from trainables.contracts.named import NamedContract

SMALL = 16
"""Pixels: most checks show images of this height and width, or of the nearest that the model takes, to be quick."""


class ModelContract(NamedContract):
    """A model maps images to logits, starts from the seed, learns everywhere, and travels in a state dict.

    names: the models that are held to it, by default all that are registered.
    """

    names: Sequence[str] = tuple(models.names())

    def test_the_registry_describes_the_model(self, name: str) -> None:
        entry = models.get(name)
        assert entry.name == name
        assert entry.family, "no family"
        assert entry.summary, "no summary"
        assert "\n" not in entry.summary, "a summary of several lines"
        assert entry.source, "no source; `-` where there is none"
        assert entry.version >= 1

    @pytest.mark.parametrize("num_classes", [2, 10, 100])
    def test_there_is_a_logit_for_each_class(self, name: str, num_classes: int) -> None:
        _check_logits(_built(name, num_classes).eval(), _images(name, 2), num_classes)

    def test_images_of_the_smallest_and_the_designed_size_are_taken(self, name: str) -> None:
        entry, model = models.get(name), _copy(name)
        channels, height, width = entry.input_shape
        for shape in ((channels, entry.smallest, entry.smallest), (channels, height, width)):
            _check_logits(model.eval(), torch.randn(1, *shape), 10)
            _check_logits(model.train(), torch.randn(2, *shape), 10)

    def test_images_that_it_cannot_take_are_refused_in_one_line(self, name: str) -> None:
        entry = models.get(name)
        channels, height, width = entry.input_shape
        entry.require(entry.input_shape)
        entry.require((channels, entry.smallest, entry.smallest))
        too_small = entry.smallest - 1
        for shape in ((channels + 1, height, width), (channels, too_small, width), (channels, height, too_small)):
            with pytest.raises(ValueError, match=f"^{re.escape(name)} ") as refusal:
                entry.require(shape)
            assert "x".join(map(str, shape)) in str(refusal.value)
            assert "\n" not in str(refusal.value)

    def test_a_gradient_reaches_every_parameter(self, name: str) -> None:
        model, images = _copy(name).eval(), _images(name, 2)
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                # A factor that starts from 0, as some residual branches have, would hide what lies behind it.
                parameter.add_(0.01 * torch.randn_like(parameter))
        logits = model(images)
        # In eval mode, since batch norm in training cancels a bias before it; and scaled, since there nothing keeps a
        # deep network's activations from growing.
        (logits * torch.randn_like(logits) / logits.detach().abs().max()).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} has no gradient"
            assert parameter.grad.isfinite().all(), f"{key} has a gradient that is not finite"
            assert parameter.grad.count_nonzero() > 0, f"{key} has a gradient of 0"

    def test_the_same_seed_starts_the_same_weights(self, name: str) -> None:
        _check_equal(_build(name, 10, seed=0).state_dict(), _built(name).state_dict())

    def test_another_seed_starts_other_weights(self, name: str) -> None:
        first, other = _built(name).state_dict(), _built(name, seed=1).state_dict()
        assert any(not torch.equal(first[key], other[key]) for key in first), "two seeds start the same weights"

    @torch.no_grad()
    def test_a_state_dict_survives_a_file_and_loads_strictly(self, name: str) -> None:
        saved, loaded, images = _copy(name), _copy(name, seed=1), _images(name, 2)
        saved.train()(images)  # so that the buffers too differ from those of a new model
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
        _check_equal(loaded.state_dict(), saved.state_dict())
        assert torch.equal(saved.eval()(images), loaded.eval()(images))

    @torch.no_grad()
    def test_channels_last_gives_the_same_logits(self, name: str) -> None:
        model, images = _copy(name).eval(), _images(name, 2)
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        _check_close(model(images.to(memory_format=torch.channels_last)), expected)

    @torch.no_grad()
    def test_an_image_is_answered_alone_and_always_alike_in_eval_mode(self, name: str) -> None:
        model, images = _built(name).eval(), _images(name, 3)
        logits = model(images)
        assert torch.equal(logits, model(images)), "the same images give other logits"
        _check_close(model(images[:1]), logits[:1])


def _build(name: str, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, num_classes)


@lru_cache(maxsize=4)
def _built(name: str, num_classes: int = 10, seed: int = 0) -> nn.Module:
    """A model that started from the seed, built once for several checks: to ask in eval mode, not to change."""
    return _build(name, num_classes, seed)


def _copy(name: str, seed: int = 0) -> nn.Module:
    """A model that started from the seed, for one check to train or to change."""
    return copy.deepcopy(_built(name, seed=seed))


def _images(name: str, n: int) -> Tensor:
    """(n, C, H, W) random images of `SMALL` pixels, or as near to it as the model takes and was designed for."""
    entry = models.get(name)
    channels, height, width = entry.input_shape
    torch.manual_seed(1)
    return torch.randn(n, channels, *(max(min(side, SMALL), entry.smallest) for side in (height, width)))


@torch.no_grad()
def _check_logits(model: nn.Module, images: Tensor, num_classes: int) -> None:
    logits, wanted = model(images), (len(images), num_classes)
    assert logits.shape == wanted, f"logits of shape {tuple(logits.shape)}; wanted: {wanted}"
    assert logits.dtype == torch.float32, f"logits are {logits.dtype}"
    assert logits.isfinite().all(), "a logit is not finite"


def _check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), f"{key} differs"


def _check_close(logits: Tensor, expected: Tensor) -> None:
    """Equal to the rounding of sums in another order, whatever the scale of an untrained network's logits."""
    difference, scale = (logits - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= 1e-4 * scale, f"logits of up to {scale:.3g} differ by {difference:.3g}"
