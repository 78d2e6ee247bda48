"""Writes docs/reference.md from the registries: methods, models, data sets, protocols, pairs and shipped studies.

python docs/make_reference.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from search_spaces import pairs, shipped
from search_spaces.spaces import written
from study.printing import plain
from trainables import data, models, objectives, protocol
from trainables.objectives.method import TASKS
from trainables.text import corpora
from trainables.text import models as text_models

REFERENCE = Path(__file__).parent / "reference.md"


def text() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the registries by `python docs/make_reference.py`; a test holds it to them.",
        "## Methods",
        "A parameter without a default takes the protocol's value. An option's first choice is its default. z are "
        "logits, p their softmax at temperature tau, y the label; _s the student, _t the teacher.",
        _methods(),
        "## Models",
        "Parameters and multiply-adds (millions, convolutions and linear layers) with so many classes, at the size "
        "given. Networks that end in a global pool also take other sizes, down to the smallest.",
        _models(),
        "## Data sets",
        _datasets(),
        "## Protocols",
        "Every field may be changed by `--set protocol.FIELD=…`; reports list what was. `crd-240` and `cifar-quick` "
        "train mobilenet_v2, shufflenet_v1 and shufflenet_v2 at lr 0.01, as the papers do.",
        _protocols(),
        "## Pairs",
        "Any `TEACHER-STUDENT` of two models for images of as many channels is a pair too.",
        _pairs(),
        "## Shipped studies",
        "`kdstudy run NAME`; `--set KEY=VALUE` cuts or changes it.",
        _studies(),
    ]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _methods() -> str:
    rows = []
    for method in map(objectives.get, objectives.names()):
        takes = [
            each.name if each.default is None else f"{each.name} {each.default:g}" for each in method.parameters
        ] + [f"{option.name}: {' / '.join(map(written, option.choices))}" for option in method.options]
        rows.append([f"`{method.name}`", method.summary, f"`{method.formula}`", "; ".join(takes) or "-", method.source])
    return _table(["method", "what it does", "loss", "takes", "source"], rows)


def _models() -> str:
    rows = []
    for entry in map(models.get, models.names()):
        network = models.build(entry.name, entry.num_classes)
        rows.append(
            [
                f"`{entry.name}`",
                "x".join(map(str, entry.input_shape)),
                str(entry.smallest),
                str(entry.num_classes),
                f"{models.count_parameters(network):,}",
                f"{models.count_macs(network, entry.input_shape) / 1e6:.2f}",
                entry.summary,
                entry.source,
            ]
        )
    images = _table(["model", "input", "smallest", "classes", "parameters", "MMACs", "what it is", "source"], rows)
    named = ", ".join(f"`{name}`" for name in text_models.names())
    return f"{images}\n\nFor text: {named}, and `hf:NAME` for a folder of yours ([guide](text.md))."


def _datasets() -> str:
    rows = []
    for entry in map(data.get, data.names()):
        sizes = " + ".join(f"{size:,}" for size in entry.sizes) if entry.sizes else "as found"
        shape = "x".join(map(str, entry.shape)) if entry.shape else "as found"
        rows.append(
            [f"`{entry.name}`", str(entry.num_classes or "as found"), sizes, shape, entry.summary, entry.source]
        )
    images = _table(["data set", "classes", "images (train + test)", "shape", "what it is", "files"], rows)
    entries = map(corpora.CORPORA.get, corpora.names())
    of_text = [[f"`{one.name}`", "trains" if one.train else "evaluates", one.summary, one.source] for one in entries]
    return f"{images}\n\nOf text ([guide](text.md)):\n\n{_table(['data set', 'for', 'what it is', 'files'], of_text)}"


def _protocols() -> str:
    names = protocol.names()
    identities = {name: protocol.resolve(name).identity() for name in names}
    tables = []
    for task in TASKS:
        own = [name for name in names if protocol.PROTOCOLS[name].task == task]
        # A template of several lines is shown in the guide.
        fields = [field for field in identities[own[0]] if field != "template"]
        rows = [[field, *(plain(identities[name][field]) for name in own)] for field in fields]
        tables.append(f"Of {task}:\n\n{_table(['field', *(f'`{name}`' for name in own)], rows)}")
    return "\n\n".join(tables)


def _pairs() -> str:
    rows = [
        [f"`{pair.name}`", pair.remark, ", ".join(f"{name} {value:g}" for name, value in pair.defaults.items()) or "-"]
        for pair in pairs.PAIRS.values()
    ]
    return _table(["pair", "where it is from", "its own defaults"], rows)


def _studies() -> str:
    return _table(["study", "question"], ([f"`{name}`", shipped.question(name)] for name in shipped.names()))


if __name__ == "__main__":
    REFERENCE.write_text(text(), encoding="utf-8")
