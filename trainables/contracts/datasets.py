"""What every data set must do, as a test class: ours pass it, and a data set of one's own is held to it in three lines.

    from trainables.contracts.datasets import DatasetContract

    class TestMyImages(DatasetContract):
        datasets = [("my_package.images:my_images", "/data/mine")]

Needs pytest, and is imported by tests only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import data, protocol
from trainables.data import DataError, ImageDataset, ResidentImages
from trainables.pipeline import Pipeline

_WITHOUT_FILES = tuple((name, None) for name in data.names() if data.get(name).finder is None)


class DatasetContract:
    """A data set has labels in range, keeps its hash, can be cut and made noisy, and can be shown to networks.

    datasets: name and folder (None: it needs none) of those that are held to it, by default all that need no files.
    """

    datasets: Sequence[tuple[str, str | Path | None]] = _WITHOUT_FILES

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each check for each data set, all checks of one in turn."""
        if "name" in metafunc.fixturenames:
            ids = [name for name, _ in self.datasets]
            metafunc.parametrize(("name", "root"), self.datasets, ids=ids, scope="class")

    def test_the_registry_describes_the_data_set(self, name: str, root: str | None) -> None:
        entry = data.get(name)
        assert entry.name == name
        assert entry.summary, "no summary"
        assert "\n" not in entry.summary, "a summary of several lines"
        assert entry.source, "no source: what must be in the folder?"
        assert entry.version >= 1

    def test_what_the_entry_says_is_what_is_there(self, name: str, root: str | None) -> None:
        entry, dataset = data.get(name), _loaded(name, root)
        assert dataset.name == name
        assert dataset.num_classes == (entry.num_classes or dataset.num_classes)
        assert dataset.train_images.shape == (entry.shape or dataset.train_images.shape)
        found = len(dataset.train_images), len(dataset.test_images)
        assert found == (entry.sizes or found)
        assert dataset.skipped == 0

    def test_images_are_bytes_and_labels_whole_numbers_one_for_each(self, name: str, root: str | None) -> None:
        dataset = _loaded(name, root)
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        ):
            assert len(images) == len(labels) > 0
            assert labels.dtype == torch.int64
            for i in (0, len(images) // 2, len(images) - 1):
                image = images.image(i)
                assert image.dtype == torch.uint8
                assert image.ndim == 3
                assert tuple(image.shape) == (images.shape or tuple(image.shape))
                assert len(image) == len(dataset.mean)

    def test_labels_are_classes_and_each_class_has_a_name_and_training_images(
        self, name: str, root: str | None
    ) -> None:
        dataset = _loaded(name, root)
        classes = dataset.num_classes
        assert classes >= 2
        assert len(dataset.class_names) == len(set(dataset.class_names)) == classes, "as many names as classes"
        for labels in (dataset.train_labels, dataset.test_labels):
            assert labels.min() >= -1, "-1 is for images that are not part of the data"
            assert labels.max() < classes
        train = dataset.train_labels[dataset.train_labels >= 0]
        empty = torch.nonzero(train.bincount(minlength=classes) == 0).flatten().tolist()
        assert not empty, f"classes without training images: {empty}"
        assert (dataset.test_labels >= 0).any(), "no test image"

    def test_the_normalisation_has_a_mean_and_a_spread_for_each_channel(self, name: str, root: str | None) -> None:
        dataset = _loaded(name, root)
        assert len(dataset.mean) == len(dataset.std)
        assert all(0 <= mean <= 1 for mean in dataset.mean), "for pixels from 0 to 1"
        assert all(0 < std <= 1 and math.isfinite(std) for std in dataset.std), "for pixels from 0 to 1"

    def test_the_hash_is_the_same_at_each_load_and_through_the_cache(
        self, name: str, root: str | None, tmp_path: Path
    ) -> None:
        dataset = _loaded(name, root)
        assert len(dataset.hash) == 64
        assert data.load(name, root).hash == dataset.hash
        for _ in range(2):  # written, then read
            kept = data.load(name, root, tmp_path)
            assert (kept.hash, kept.class_names) == (dataset.hash, dataset.class_names)
            assert torch.equal(kept.train_labels, dataset.train_labels)
            assert torch.equal(kept.test_labels, dataset.test_labels)
            last = len(kept.test_images) - 1
            assert torch.equal(kept.test_images.image(last), dataset.test_images.image(last))

    def test_a_folder_that_will_not_do_is_one_line_that_says_what_is_wanted(
        self, name: str, root: str | None, tmp_path: Path
    ) -> None:
        if root is None:
            return  # there is no folder that could be wrong
        for folder in (None, tmp_path, tmp_path / "nothing"):
            with pytest.raises(DataError) as refusal:
                data.load(name, folder)
            assert "\n" not in str(refusal.value)
            assert data.get(name).source in str(refusal.value)

    def test_it_can_be_cut_to_some_classes_without_moving_an_image(self, name: str, root: str | None) -> None:
        dataset = _loaded(name, root)
        last = dataset.num_classes - 1
        if not (dataset.test_labels == last).any() and not (dataset.test_labels == 0).any():
            pytest.skip("the test part has neither the first class nor the last")
        cut = data.restrict(dataset, [last, 0])
        assert cut.class_names == (dataset.class_names[last], dataset.class_names[0])
        assert torch.equal(cut.train_labels == 0, dataset.train_labels == last)
        assert torch.equal(cut.test_labels == 1, dataset.test_labels == 0)
        assert len(cut.train_images) == len(dataset.train_images)
        assert cut.hash == dataset.hash

    def test_label_noise_is_an_exact_share_of_the_training_labels(self, name: str, root: str | None) -> None:
        dataset = _loaded(name, root)
        noisy, again = (data.restrict(dataset, label_noise=0.3, noise_seed=5) for _ in range(2))
        members = int((dataset.train_labels >= 0).sum())
        assert int((noisy.train_labels != dataset.train_labels).sum()) == round(0.3 * members)
        assert torch.equal(noisy.train_labels, again.train_labels)
        assert torch.equal(noisy.test_labels, dataset.test_labels)
        assert torch.equal(noisy.train_labels < 0, dataset.train_labels < 0)

    @pytest.mark.parametrize("views", protocol.VIEWS)
    @pytest.mark.parametrize("kinds", [("weak",), ("weak", "strong")])
    def test_networks_are_shown_batches_of_the_pipelines_shape(
        self, name: str, root: str | None, views: str, kinds: tuple[str, ...]
    ) -> None:
        dataset = _loaded(name, root)
        resized = views == "random_resized_crop" or not isinstance(dataset.train_images, ResidentImages)
        sizes: dict[str, Any] = {"image_size": 24, "eval_resize": 28} if resized else {}
        shown = protocol.resolve("digits-quick", views=views, **sizes)
        few = torch.nonzero(dataset.train_labels >= 0).flatten()[:5].split(3)
        if len(dataset.mean) not in (1, 3) and (resized or "strong" in kinds):
            with pytest.raises(ValueError, match="1 or 3 channels"):
                list(Pipeline(dataset, shown).training(0, 1, few, kinds))
            return
        made = Pipeline(dataset, shown)
        assert made.shape[0] == len(dataset.mean)
        if views == "crop_flip" and resized and kinds == ("weak",):
            return  # it would resize the whole data set first
        first, again = (list(pipeline.training(0, 1, few, kinds)) for pipeline in (made, Pipeline(dataset, shown)))
        for one, other in zip(first, again, strict=True):
            assert len(one.views) == len(kinds)
            for pixels, repeated in zip(one.views, other.views, strict=True):
                assert pixels.dtype == torch.uint8
                assert tuple(pixels.shape) == (len(one.labels), *made.shape)
                assert torch.equal(pixels, repeated), "a view depends on more than seed, epoch and image"
            assert torch.equal(one.labels, dataset.train_labels[one.indices])


@lru_cache(maxsize=4)
def _loaded(name: str, root: str | Path | None) -> ImageDataset:
    return data.load(name, root)
