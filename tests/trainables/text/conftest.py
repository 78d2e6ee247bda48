"""One toy model and one corpus for all tests of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy_text import write_corpus, write_model
from trainables.text import corpora
from trainables.text.corpora import TextDataset


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "toy", layers=4)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def dataset(models_folder: Path, cache: Path, corpus: Path) -> TextDataset:
    return corpora.load("instructions", corpus, models_folder, cache, ["self_inst"])
