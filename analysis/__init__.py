"""From tracked runs to frames, statistics, figures, tables and one report.

Reads MLflow alone: what a study wrote there is all that a report knows. Imports pandas, numpy, mlflow, scipy,
matplotlib and jinja2, nothing of `study`, `trainables` or `search_spaces`. `published/` holds the papers' numbers.
The names below are imported when they are first used, so that the command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.answers import verdicts
    from analysis.frames import ReportError, generations_of, load_generations, load_history, load_runs, load_studies
    from analysis.page import changed, report, write_report
    from analysis.statistics import resolvable_difference, seeds_needed

_HOMES = {
    "ReportError": "analysis.frames",
    "changed": "analysis.page",
    "generations_of": "analysis.frames",
    "load_generations": "analysis.frames",
    "load_history": "analysis.frames",
    "load_runs": "analysis.frames",
    "load_studies": "analysis.frames",
    "report": "analysis.page",
    "resolvable_difference": "analysis.statistics",
    "seeds_needed": "analysis.statistics",
    "verdicts": "analysis.answers",
    "write_report": "analysis.page",
}

__all__ = [
    "ReportError",
    "changed",
    "generations_of",
    "load_generations",
    "load_history",
    "load_runs",
    "load_studies",
    "report",
    "resolvable_difference",
    "seeds_needed",
    "verdicts",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
