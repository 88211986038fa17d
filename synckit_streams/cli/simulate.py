"""`synckit simulate`: histories with every fault, played on the shipped code from a seed, and bugs planted into it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from synckit_streams.cli.terminal import (
    INTERRUPTED,
    JsonFlag,
    complain,
    plain_markup,
    plural,
    progress,
    results,
    show,
    show_json,
)
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.testing.simulator import (
    BUGS,
    PROFILES,
    Caught,
    Tally,
    bug_named,
    diff_of,
    hunt_many,
    play,
    play_many,
)

REASONS_SHOWN = 5
ALL = "all"


def simulate(
    seeds: Annotated[
        int | None,
        typer.Option(
            help="How many histories to play; 300 unless --planted.", min=1, max=1_000_000, show_default=False
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(help="The first one's seed.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Play this one seed only.", min=0, show_default=False)] = None,
    profile: Annotated[
        str, typer.Option(help=f"One of {', '.join(PROFILES)}; otherwise each seed has its own.", show_default=False)
    ] = "",
    trace: Annotated[
        bool, typer.Option("--trace", help="With --seed: show what happened, line by line.", show_default=False)
    ] = False,
    planted: Annotated[
        str,
        typer.Option(
            metavar="NAME|all", help="Plant a bug into the code, and see whether it is found.", show_default=False
        ),
    ] = "",
    show_change: Annotated[
        bool, typer.Option("--show", help="With --planted NAME: show the change instead.", show_default=False)
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core.", min=0)] = 0,
    json: JsonFlag = False,
) -> None:
    """Play histories with every fault on the shipped code, and count what went wrong.

    Each seed is a handful of nodes in virtual time, with users who write, a broker that loses, doubles and forgets, and
    disks that fill, fail and are put back. A seed decides everything, so a failure plays again. The status is 1 if
    anything was lost, doubled or diverged.

    [bold]Examples[/bold]

      $ synckit simulate --seeds 300
      $ synckit simulate --seed 59 --trace
      $ synckit simulate --seeds 1000 --first-seed 5000 --profile rotation --json
      $ synckit simulate --planted all
      $ synckit simulate --planted no-hold --show
    """
    # Each history has an event loop of its own, so there is none here.
    try:
        if planted:
            failed = _hunt(planted, seeds or 0, show_change=show_change, jobs=jobs, json=json)
        elif show_change:
            raise ConfigError("--show shows a planted bug", hint="name it: --planted no-hold --show")
        else:
            failed = _simulate(seeds or 300, first_seed, seed, profile, trace=trace, jobs=jobs, json=json)
    except SyncKitError as error:
        complain(error, json=json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if failed:
        raise typer.Exit(1)


# --- histories -------------------------------------------------------------------------------------------------------


def _simulate(
    seeds: int, first_seed: int, seed: int | None, profile: str, *, trace: bool, jobs: int, json: bool
) -> bool:
    if profile and profile not in PROFILES:
        raise ConfigError(f"there is no profile {profile!r}", hint=f"choose one of {', '.join(PROFILES)}")
    if trace and seed is None:
        raise ConfigError("--trace shows one history", hint="name it: --seed 59 --trace")
    tally = Tally()
    if seed is not None:
        outcome = play(seed, profile, trace=trace)
        tally.add(outcome)
        if not json:
            for line in outcome.timeline:
                show(line)
    else:
        wanted = range(first_seed, first_seed + seeds)
        with progress("playing", len(wanted), unit="histories", quiet=json) as advance:
            for outcome in play_many(wanted, profile, jobs=jobs):
                tally.add(outcome)
                advance.to(tally.seeds)
    if json:
        show_json(tally.as_json())
    else:
        _say(tally)
    return bool(tally.failing)


def _say(tally: Tally) -> None:
    out = results()
    for outcome in sorted(tally.failing, key=lambda each: each.seed):
        out.print(f"[bold red]seed {outcome.seed}[/] ({outcome.profile})", soft_wrap=True)
        for reason in outcome.reasons[:REASONS_SHOWN]:
            out.print(f"  {plain_markup(reason)}", soft_wrap=True)
        again = f"synckit simulate --seed {outcome.seed} --profile {outcome.profile} --trace"
        out.print(f"  again: {again}", markup=False, soft_wrap=True)
    struck = sum(tally.faults.values())
    verdict = f"[bold red]{len(tally.failing)} failed[/]" if tally.failing else "[bold green]none failed[/]"
    out.print(
        f"{plural(tally.seeds, 'history', 'histories')}, {plural(tally.events, 'event')}, "
        f"{plural(struck, 'fault')}: {verdict}",
        soft_wrap=True,
    )


# --- planted bugs ----------------------------------------------------------------------------------------------------


def _hunt(name: str, seeds: int, *, show_change: bool, jobs: int, json: bool) -> bool:
    if show_change:
        if name == ALL:
            raise ConfigError("--show shows one bug", hint=f"name it: {', '.join(bug.name for bug in BUGS)}")
        show(diff_of(bug_named(name)).rstrip("\n"))
        return False
    bugs = BUGS if name == ALL else (bug_named(name),)
    caught: list[Caught] = []
    with progress("hunting", len(bugs), unit="bugs", quiet=json) as advance:
        for each in hunt_many([bug.name for bug in bugs], seeds, jobs=jobs):
            caught.append(each)
            advance.to(len(caught))
    missed = sorted(each.name for each in caught if not each.by)
    if json:
        show_json({"planted": len(bugs), "caught": len(bugs) - len(missed), "missed": missed})
    else:
        _say_caught(caught)
    return bool(missed)


def _say_caught(caught: list[Caught]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("planted bug", "what is wrong with it", "found by"):
        table.add_column(head, overflow="fold")
    for each in sorted(caught, key=lambda each: each.name):
        found = plain_markup(each.by) if each.by else f"[bold red]missed in {plural(each.seeds, 'seed')}[/]"
        table.add_row(each.name, plain_markup(bug_named(each.name).why), found)
    out = results()
    out.print(table)
    missed = sum(not each.by for each in caught)
    verdict = f"[bold red]{missed} missed[/]" if missed else "[bold green]all found[/]"
    out.print(f"\n{plural(len(caught), 'planted bug')}: {verdict}")
