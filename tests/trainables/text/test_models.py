"""Causal models: names, where they are looked for, what is cut from them, and tokenizers that differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.toy_text import write_model
from trainables.text import models
from trainables.text.models import ModelError, Name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("smollm2", Name("smollm2")),
        ("smollm2_every10", Name("smollm2", every=10)),
        ("hf:toy_tiny", Name("hf:toy", size="tiny")),
        ("hf:toy", Name("hf:toy")),
        ("resnet20", None),
        ("smollm2_huge", None),
        ("smollm2_every0", None),
        ("package.module:factory", None),
    ],
)
def test_names(name: str, found: Name | None) -> None:
    assert models.parse(name) == found


def test_every_nth_layer_is_that_layer(models_folder: Path, cache: Path) -> None:
    whole, cut = (models.build(name, models_folder, cache) for name in ("hf:toy", "hf:toy_every2"))
    own, there = cut.state_dict(), whole.state_dict()
    assert cut.config.num_hidden_layers == 2
    for key, value in own.items():
        expected = there[key.replace("layers.1.", "layers.2.")]
        assert torch.equal(value, expected), key


def test_a_student_of_the_teacher_without_the_other_layers_is_the_teacher_without_them(
    models_folder: Path, cache: Path
) -> None:
    whole, cut = (models.build(name, models_folder, cache).eval() for name in ("hf:toy", "hf:toy_every2"))
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[2]])
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids, use_cache=False).logits, cut(input_ids=ids, use_cache=False).logits)
        # Its cache knows its own layers.
        cut.generate(input_ids=ids, max_new_tokens=3, do_sample=False)


def test_a_fresh_one_is_drawn_from_torchs_generator(models_folder: Path, cache: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return models.build("hf:toy_tiny", models_folder, cache).get_output_embeddings().weight.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).shape == (models.vocabulary("hf:toy", models_folder, cache), 64)


def test_a_model_that_is_not_there_says_where_it_was_looked_for(models_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no folder {tmp_path}/toy .KDSTUDY_MODELS"):
        models.locate("hf:toy", tmp_path)
    (tmp_path / "toy").mkdir()
    with pytest.raises(ModelError, match=r"neither a config\.json nor a GGUF file"):
        models.locate("hf:toy", tmp_path)
    shutil.copy(models_folder / "toy" / "config.json", tmp_path / "toy")
    with pytest.raises(ModelError, match=r"has no weights"):
        models.locate("hf:toy", tmp_path)
    (tmp_path / "toy" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pickled weights are not read"):
        models.locate("hf:toy", tmp_path)


def test_the_hash_is_of_what_decides_a_model(models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "toy", tmp_path / "toy")
    before = models.base_hash("hf:toy", tmp_path)
    assert before == models.base_hash("hf:toy_tiny", models_folder)
    file = tmp_path / "toy" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    models.locate.cache_clear()
    assert models.base_hash("hf:toy", tmp_path) != before


def test_tokenizers_that_differ_are_refused_with_the_reason(models_folder: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "toy", tmp_path / "toy")
    write_model(tmp_path / "other", words="entirely different things are said here")
    models.require_same_tokens("hf:toy", "hf:toy_tiny", tmp_path, cache)
    with pytest.raises(ModelError, match=r"different tokenizers .* student of the same family"):
        models.require_same_tokens("hf:toy", "hf:other", tmp_path, cache)
