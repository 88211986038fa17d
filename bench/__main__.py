"""`python -m bench`: measure, print a table, and write the rows as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import append, bridging, brokers, cost, handling, postgres, reading, redis_store, relaying, way
from bench.measure import Case, Row, Scale, Skipped

RESULTS = Path(__file__).parent / "results.json"
EVENTS = 100_000
ROUNDS = 5
QUICK_EVENTS, QUICK_ROUNDS = 20_000, 3

CASES: list[Case] = [
    *append.cases(),
    *way.cases(),
    *brokers.cases(),
    *bridging.cases(),
    *reading.cases(),
    *postgres.cases(),
    *redis_store.cases(),
    *handling.cases(),
    *relaying.cases(),
    *cost.cases(),
]


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 0 also when a ratio is not reached: a benchmark tells, it does not judge."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--quick", action="store_true", help="fewer events and rounds, and no row over a million events"
    )
    parser.add_argument("--events", type=int, help=f"how many events the main rows take; {EVENTS:,} by default")
    parser.add_argument("--rounds", type=int, help=f"how often each side is measured; {ROUNDS} by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the rows are written")
    parser.add_argument("--directory", type=Path, help="where the databases are made; the system's temporary one")
    given = parser.parse_args(arguments)
    quick = given.quick
    scale = Scale(
        events=given.events or (QUICK_EVENTS if quick else EVENTS),
        rounds=given.rounds or (QUICK_ROUNDS if quick else ROUNDS),
        long=not quick or given.events is not None,
    )
    chosen = [case for case in CASES if case.name in (given.only or names)]
    rows = measure(chosen, scale, given.directory, Console(stderr=True), named=bool(given.only))
    Console().print(table(rows))
    given.output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def measure(chosen: list[Case], scale: Scale, where: Path | None, console: Console, *, named: bool) -> list[Row]:
    """Each case in a directory of its own, that is gone before the next one begins."""
    rows: list[Row] = []
    for case in chosen:
        if case.long and not scale.long and not named:
            console.print(f"[dim]{case.name}: left out of a quick run")
            continue
        directory = Path(tempfile.mkdtemp(prefix="synckit-bench-", dir=where))
        started = time.monotonic()
        try:
            with console.status(f"{case.name}: {case.about}"):
                rows.append(case.run(scale, directory))
        except Skipped as reason:
            console.print(f"[yellow]{case.name}: left out: {reason}")
        else:
            console.print(f"[dim]{case.name}: {rows[-1].ratio:.2f} of {rows[-1].wanted:g}", end=" ")
            console.print(f"[dim]in {time.monotonic() - started:.0f} s")
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return rows


def table(rows: list[Row]) -> Table:
    """The rows for a person."""
    made = Table(title="synckit-streams, side by side")
    made.caption = "other: the other side, or what is allowed. ratio: the larger the better"
    for name, justify in (("row", "left"), ("ours", "right"), ("other", "right"), ("unit", "left")):
        made.add_column(name, justify=justify, no_wrap=name == "row")  # type: ignore[arg-type]
    made.add_column("ratio", justify="right")
    made.add_column("wanted", justify="right")
    for row in rows:
        colour = "green" if row.ratio >= row.wanted else "red"
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (row.ours, row.other)]
        made.add_row(row.name, *figures, row.unit, f"[{colour}]{row.ratio:.2f}[/]", f"{row.wanted:.2f}")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
