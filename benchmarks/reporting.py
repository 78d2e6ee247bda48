"""What a report of 1,000 runs of 240 epochs takes: reading MLflow into frames, and making the page.

    python -m benchmarks.reporting [--json FILE] [--quick]

The runs are made, not trained (`benchmarks.stored`); each part is done by a process of its own, and megabytes are what
that process's memory grew by at its peak.

Limits. Each run's history is one file, and each of its numbers a row of MLflow's database: 1,000 files and, of a run's
metrics, the last values alone. To reach: both frames in a minute and 2 GB.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import stored
from benchmarks.measuring import Table, arguments, environment, show
from benchmarks.scale import Clock, apart, load
from study import tracking

PARTS = ("analysis.load_runs", "analysis.load_history", "analysis.load_studies", "analysis.write_report")


def measure(points: int, epochs: int) -> Table:
    """Seconds and megabytes of each part."""
    tracking.configure()

    def fill(clock: Clock, points: int) -> None:
        stored.fill(points, sampled=False, epochs=epochs)
        stored.track()

    with tempfile.TemporaryDirectory() as folder, environment(KDSTUDY_HOME=str(Path(folder) / "home")):
        apart(fill, points)
        found = apart(load, points)
    rows = [(name, *found[name]) for name in PARTS]
    frames = sum(found[name][0] for name in PARTS[:2])
    rows.append(("both frames", frames, None))
    return Table(
        f"A report of {points * stored.SEEDS:,} runs of {epochs} epochs",
        ("part", "seconds", "MB"),
        tuple(rows),
        "To reach: both frames in 60 s and 2,000 MB.",
    )


def main() -> None:
    """Measure and show."""
    options = arguments(__doc__).parse_args()
    show("reporting", [measure(4, 12) if options.quick else measure(334, 240)], options)


if __name__ == "__main__":
    main()
