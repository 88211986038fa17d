"""`synckit simulate`: histories with every fault, played on the shipped code from a seed, and bugs planted into it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from synckit_streams.cli.terminal import (
    INTERRUPTED,
    JsonFlag,
    complain,
    plain,
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
    Outcome,
    Tally,
    bug_named,
    diff_of,
    hunt_many,
    play,
    play_many,
)

SEEDS = 300
REASONS_SHOWN = 5
ALL = "all"


def simulate(
    seeds: Annotated[
        int | None,
        typer.Option(
            help="How many histories to play: 300, or what a planted bug may take.",
            min=1,
            max=1_000_000,
            show_default=False,
        ),
    ] = None,
    first_seed: Annotated[int | None, typer.Option(help="The first one's seed.", min=0, show_default="0")] = None,
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
            _only("--planted", seed=seed, profile=profile, trace=trace)
            if show_change:
                _show(planted, json=json)
                return
            failed = _hunt(planted, seeds or 0, first_seed, jobs=jobs, json=json)
        elif show_change:
            raise ConfigError("--show shows a planted bug", hint="name it: --planted no-hold --show")
        elif seed is not None:
            _only("--seed", seeds=seeds, first_seed=first_seed)
            failed = _replay(seed, _known(profile), trace=trace, json=json)
        elif trace:
            raise ConfigError("--trace shows one history", hint="name it: --seed 59 --trace")
        else:
            first_seed = first_seed or 0
            wanted = range(first_seed, first_seed + (seeds or SEEDS))
            failed = _simulate(wanted, _known(profile), jobs=jobs, json=json)
    except SyncKitError as error:
        complain(error, json=json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if failed:
        raise typer.Exit(1)


def _only(with_option: str, **others: object) -> None:
    """Refuse options that would be read by nobody.

    Raises:
        ConfigError: one of them was given.
    """
    for name, value in others.items():
        if value not in (None, "", False):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no meaning with {with_option}", hint=f"leave {option} out")


# --- histories -------------------------------------------------------------------------------------------------------


def _known(profile: str) -> str:
    if profile and profile not in PROFILES:
        raise ConfigError(f"there is no profile {profile!r}", hint=f"choose one of {', '.join(PROFILES)}")
    return profile


def _replay(seed: int, profile: str, *, trace: bool, json: bool) -> bool:
    outcome = play(seed, profile, trace=trace)
    if json and trace:
        show_json({"seed": seed, "profile": outcome.profile, "timeline": outcome.timeline})
    elif trace:
        for line in outcome.timeline:
            show(line)
    tally = Tally()
    tally.add(outcome)
    return _report(tally, json=json)


def _simulate(seeds: range, profile: str, *, jobs: int, json: bool) -> bool:
    tally = Tally()
    with progress("playing", len(seeds), unit="seeds", quiet=json) as advance:
        for outcome in play_many(seeds, profile, jobs=jobs):
            tally.add(outcome)
            advance.to(len(tally.seeds))
    return _report(tally, json=json)


def _report(tally: Tally, *, json: bool) -> bool:
    """The verdict; gives whether anything failed."""
    failing = sorted(tally.failing, key=lambda outcome: (outcome.seed, outcome.profile))
    if json:
        for outcome in failing:
            show_json({"seed": outcome.seed, "profile": outcome.profile, "reasons": outcome.reasons})
        show_json(tally.as_json())
    else:
        _say(tally, failing)
    return bool(failing)


def _say(tally: Tally, failing: list[Outcome]) -> None:
    out = results()
    for outcome in failing:
        out.print(f"[bold red]seed {outcome.seed}[/] ({outcome.profile})", soft_wrap=True)
        for reason in outcome.reasons[:REASONS_SHOWN]:
            out.print(f"  {plain_markup(reason)}", soft_wrap=True)
        again = f"synckit simulate --seed {outcome.seed} --profile {outcome.profile} --trace"
        out.print(f"  again: {again}", markup=False, soft_wrap=True)
    struck = sum(tally.faults.values())
    verdict = f"[bold red]{len(failing)} failed[/]" if failing else "[bold green]none failed[/]"
    out.print(
        f"{plural(tally.histories, 'history', 'histories')}, {plural(tally.events, 'event')}, "
        f"{plural(struck, 'fault')}: {verdict}",
        soft_wrap=True,
    )


# --- planted bugs ----------------------------------------------------------------------------------------------------


def _show(name: str, *, json: bool) -> None:
    if name == ALL:
        raise ConfigError("--show shows one bug", hint=f"name it: {', '.join(bug.name for bug in BUGS)}")
    bug = bug_named(name)
    change = diff_of(bug)
    if json:
        show_json({"bug": bug.name, "why": bug.why, "diff": change})
    else:
        show(change.rstrip("\n"))


def _hunt(name: str, seeds: int, first_seed: int | None, *, jobs: int, json: bool) -> bool:
    bugs = BUGS if name == ALL else (bug_named(name),)
    missed: list[str] = []
    for caught in hunt_many([bug.name for bug in bugs], seeds, first_seed, jobs=jobs):
        if not caught.by:
            missed.append(caught.name)
        if json:
            show_json(caught.as_json())
        else:
            _say_caught(caught)
    if json:
        show_json({"planted": len(bugs), "caught": len(bugs) - len(missed), "missed": sorted(missed)})
    else:
        verdict = f"[bold red]{len(missed)} missed[/]" if missed else "[bold green]all found[/]"
        results().print(f"\n{plural(len(bugs), 'planted bug')}: {verdict}")
    return bool(missed)


def _say_caught(caught: Caught) -> None:
    """One row of a table that grows as the bugs are found: each row is a table with the same widths."""
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(width=1)
    row.add_column(width=max(len(bug.name) for bug in BUGS))
    row.add_column(width=max(len(bug.scene) for bug in BUGS) + len("scene "))
    row.add_column(ratio=1, overflow="fold", style="dim")
    mark = Text("✓", "green") if caught.by else Text("✗", "bold red")
    by = Text(caught.by) if caught.by else Text(f"missed in {plural(caught.seeds, 'seed')}", "bold red")
    row.add_row(mark, caught.name, by, Text(plain(bug_named(caught.name).why)))
    results().print(row)
