"""`synckit simulate`: histories with every fault, played on the shipped code from a seed."""

from __future__ import annotations

from typing import Annotated

import typer

from synckit_streams.cli.terminal import INTERRUPTED, JsonFlag, complain, progress, results, show, show_json
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.testing.simulation.history import play
from synckit_streams.testing.simulation.pool import Tally, play_many
from synckit_streams.testing.simulation.profiles import PROFILES

REASONS_SHOWN = 5


def simulate(
    seeds: Annotated[int, typer.Option(help="How many histories to play.", min=1, max=1_000_000)] = 300,
    first_seed: Annotated[int, typer.Option(help="The first one's seed.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Play this one seed only.", min=0)] = None,
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}; each seed has its own.")] = "",
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: show what happened, line by line.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core.", min=0)] = 0,
    json: JsonFlag = False,
) -> None:
    """Play histories with every fault on the shipped code, and count what went wrong.

    A seed decides everything, so a failure plays again. Exit status 1 if anything was lost, doubled or diverged.

    Examples:

      synckit simulate --seeds 300

      synckit simulate --seed 59 --trace

      synckit simulate --seeds 1000 --first-seed 5000 --profile rotation --json
    """

    # Each history has an event loop of its own, so there is none here.
    try:
        tally = _play(seeds, first_seed, seed, profile, trace=trace, jobs=jobs, json=json)
    except SyncKitError as error:
        complain(error, json=json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if json:
        show_json(tally.as_json())
    else:
        _say(tally)
    if tally.failing:
        raise typer.Exit(1)


def _play(seeds: int, first_seed: int, seed: int | None, profile: str, *, trace: bool, jobs: int, json: bool) -> Tally:
    if profile and profile not in PROFILES:
        raise ConfigError(f"there is no profile {profile!r}", hint=f"choose one of {', '.join(PROFILES)}")
    if trace and seed is None:
        raise ConfigError("--trace shows one history", hint="name it: --seed 59 --trace")
    tally = Tally()
    if seed is not None:
        outcome = play(seed, PROFILES[profile] if profile else None, trace=trace)
        tally.add(outcome)
        if not json:
            for line in outcome.timeline:
                show(line)
        return tally
    wanted = range(first_seed, first_seed + seeds)
    with progress("playing", len(wanted), unit="histories", quiet=json) as advance:
        for outcome in play_many(wanted, profile, jobs=jobs):
            tally.add(outcome)
            advance.to(tally.seeds)
    return tally


def _say(tally: Tally) -> None:
    out = results()
    for outcome in sorted(tally.failing, key=lambda each: each.seed):
        out.print(f"[bold red]seed {outcome.seed}[/] ({outcome.profile})", soft_wrap=True)
        for reason in outcome.reasons[:REASONS_SHOWN]:
            out.print(f"  {reason}", markup=False, soft_wrap=True)
        again = f"synckit simulate --seed {outcome.seed} --profile {outcome.profile} --trace"
        out.print(f"  again: {again}", markup=False, soft_wrap=True)
    struck = sum(tally.faults.values())
    verdict = f"[bold red]{len(tally.failing)} failed[/]" if tally.failing else "[bold green]none failed[/]"
    out.print(f"{tally.seeds} histories, {tally.events} events, {struck} faults: {verdict}", soft_wrap=True)
