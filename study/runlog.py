"""One log a run: what its driver heard of it, by the driver's clock, so that clocks of nodes do not matter."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.home import Home

# A run that fails again and again writes the same again and again: the beginning and the end are what is read.
MOST_BYTES = 1_000_000


def path_of(home: Home, run_id: str) -> Path:
    """Where a run's log lies, on the driver's host."""
    return home.logs / "runs" / f"{run_id}.log"


def write(home: Home, run_id: str, attempt: int, text: str) -> None:
    """Add to a run's log; a disk that takes no more is no reason to stop a study."""
    path, stamp = path_of(home, run_id), time.strftime("%Y-%m-%d %H:%M:%S")
    lines = "".join(f"{stamp} attempt {attempt}: {line}\n" for line in text.rstrip().splitlines())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MOST_BYTES:
            content = path.read_text(encoding="utf-8")
            half = MOST_BYTES // 4
            path.write_text(f"{content[:half]}\n… left out …\n{content[-half:]}", encoding="utf-8")
        with path.open("a", encoding="utf-8") as stream:
            stream.write(lines)
    except OSError:
        return


def read(home: Home, run_id: str) -> str | None:
    """A run's log; None where this host has none."""
    try:
        return path_of(home, run_id).read_text(encoding="utf-8")
    except OSError:
        return None


def of_report(report: Mapping[str, Any]) -> str:
    """A worker's report in lines."""
    lines = []
    for metrics in report["epochs"]:
        shown = (f"{name} {value:.4g}" for name, value in metrics.items() if name != "epoch")
        lines.append(f"epoch {metrics['epoch']:.0f}: {', '.join(shown)}")
    if report["checkpoint"]:
        lines.append(f"checkpoint {report['checkpoint']}")
    if report.get("warning"):
        lines.append(f"warning: {report['warning']}")
    if report["failed"]:
        lines += [f"{'lost' if report.get('lost') else 'failed'}: {report['failed']}", report.get("traceback", "")]
    elif report["done"]:
        lines.append("done")
    host = report.get("host")
    return "\n".join(f"[{host}] {line}" if host else line for text in lines for line in text.splitlines())
