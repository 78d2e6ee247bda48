"""How MLflow's page of a study opens: a flat list of runs, alpha, tau, beta, gamma and accuracy as columns and axes.

MLflow keeps a shared view of an experiment in a tag, and a page's address can name it. What it does not understand it
ignores, so that another version of MLflow shows its own default.
"""

from __future__ import annotations

import json
from typing import Any

SHARE_KEY = "kdstudy"
_PARAMS = ("pair", "method", "alpha", "tau", "beta", "gamma", "seed")
_RATIOS = ("mis_instruction_ratio", "capped_ratio")
_CHARTS = "kdstudy-charts"


def experiment_tags(score: str = "top1") -> dict[str, str]:
    """Tags of a study's experiment: its kind, so that the page shows training runs, and the shared view.

    `score`: what students are valued by, as metrics are called.
    """
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{SHARE_KEY}": json.dumps(_view(score)),
    }


def address(server: str, experiment_id: str, *, charts: bool) -> str:
    """The address of a study's page, as a table or as charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={SHARE_KEY}{mode}"


def _view(score: str) -> dict[str, Any]:
    last = f"test_{score}_last"
    return {
        "searchFilter": "tags.`kdstudy.kind` = 'run'",
        # Ordered by anything but its date a list is flat, and its runs are drawn; else they hide in their groups.
        "orderByKey": f"metrics.`{last}`",
        "orderByAsc": False,
        "selectedColumns": [
            *(f"params.`{name}`" for name in _PARAMS),
            *(f"metrics.`{name}`" for name in (last, f"test_{score}_best", f"val_{score}_last", *_RATIOS)),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            {"uuid": _CHARTS, "name": "Study", "display": True, "isReordered": False},
        ],
        "compareRunCharts": [
            _scatter("hp.alpha", last),
            _scatter("mis_instruction_ratio", last),
            {
                "uuid": "kdstudy-parallel",
                "type": "PARALLEL",
                "runsCountToCompare": 100,
                "metricSectionId": _CHARTS,
                "deleted": False,
                "isGenerated": False,
                "displayName": "",
                "selectedParams": ["alpha", "tau", "beta", "gamma"],
                "selectedMetrics": [last],
                "showAllRuns": False,
            },
            {
                "uuid": "kdstudy-curves",
                "type": "LINE",
                "runsCountToCompare": 100,
                "metricSectionId": _CHARTS,
                "deleted": False,
                "isGenerated": False,
                "displayName": "",
                "metricKey": f"test_{score}",
                "selectedMetricKeys": [f"test_{score}"],
                "lineSmoothness": 0,
                "scaleType": "linear",
                "xAxisKey": "step",
                "selectedXAxisMetricKey": "",
                "xAxisScaleType": "linear",
                "range": {},
            },
        ],
    }


def _scatter(x: str, y: str) -> dict[str, Any]:
    return {
        "uuid": f"kdstudy-{x}-{y}",
        "type": "SCATTER",
        "runsCountToCompare": 100,
        "metricSectionId": _CHARTS,
        "deleted": False,
        "isGenerated": False,
        "displayName": "",
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
        "tooltipKeys": [],
    }
