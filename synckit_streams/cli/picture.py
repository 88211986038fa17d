"""How the demo looks: a line for each scene as it ends, then the conflicts, the read model and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from synckit_streams.cli.audit import Audit
from synckit_streams.cli.offices import CENTRAL, EDITS, OFFICES, WEST, Airport, Edit
from synckit_streams.cli.story import Answered, Ending, Scene
from synckit_streams.model.codec import node_of

WIDTH = 98
COLORS = {"west": "cyan", "central": "magenta", "east": "yellow"}
NO_STATE = "NA"
BAR_CELLS = 17
LARGEST_SHOWN = 3


def office_text(office: str) -> Text:
    """An office's name, in its colour."""
    return Text(office, style=f"bold {COLORS[office]}")


def opening(airports: int, broker: str, each_in: str) -> RenderableType:
    """What is about to happen."""
    said = Text.assemble(
        ("Three offices", "bold"),
        f" keep one register of {airports:,} real airports, each in {each_in} of its own.\n",
        "They write ",
        ("offline", "bold"),
        ", meet two at a time over ",
        (broker, "bold"),
        ", and end up alike.",
    )
    return Panel(said, title="[bold]synckit demo[/bold]", title_align="left", box=box.ROUNDED)


def _scene_grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=2, min_width=2, justify="right", style="dim")
    for _ in OFFICES:
        grid.add_column(min_width=8, justify="right", no_wrap=True)
    grid.add_column()
    return grid


def scenes_head() -> RenderableType:
    """Above the scenes."""
    grid = _scene_grid()
    legend = Text.assemble(("events in each store   ", "dim"), ("● online  ", "green"), ("○ offline", "dim"))
    grid.add_row("", *map(office_text, OFFICES), legend)
    return grid


def scene_line(number: int, scene: Scene, before: Mapping[str, int]) -> RenderableType:
    """One scene; a store that grew is bright.

    Args:
        number: From 1.
        scene: What happened.
        before: How many events each store held before it.
    """
    cells = []
    for office in OFFICES:
        count = f"{scene.events[office]:>6,}"
        grew = scene.events[office] > before.get(office, 0)
        mark = ("● ", "green") if office in scene.online else ("○ ", "dim")
        cells.append(Text.assemble(mark, (count, f"bold {COLORS[office]}" if grew else "dim")))
    grid = _scene_grid()
    grid.add_row(str(number), *cells, scene.story)
    return grid


# ------------------------------------------------------------------------------------------------------------ conflicts


def _said(edit: Edit, *, won: bool) -> Text:
    text = Text.assemble(("✓ " if won else "  ", "bold green"))
    style = COLORS[edit.office] if won else "dim"
    for number, (field, value) in enumerate(edit.fields.items()):
        text.append(", " if number else "", style=style)
        text.append(f"{field} ", style="dim")
        text.append(value, style=f"bold {style}" if won else style)
    return text


def conflicts(answered: Sequence[Answered], register: Mapping[str, Airport], *, wide: bool) -> RenderableType:
    """Both sides of each conflict, who won, and, if there is room, why in the resolver's own words."""
    by_office = {(edit.office, edit.airport): edit for edit in EDITS}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("", style="bold")
    table.add_column(Text.assemble("  ", office_text(WEST), " wrote"), min_width=29 if wide else None)
    table.add_column(Text.assemble("  ", office_text(CENTRAL), " wrote"), min_width=29 if wide else None)
    if wide:
        table.add_column("why", width=34)
    for each in answered:
        winner = each.resolution.winner
        office = node_of(winner.origin) if winner is not None else ""
        sides = [_said(by_office[side, each.airport], won=side == office) for side in (WEST, CENTRAL)]
        why = Text("; ".join(each.resolution.reasons), style="dim")
        why.highlight_words([office], style=f"bold not dim {COLORS.get(office, '')}")
        table.add_row(each.airport, *sides, *([why] if wide else []))
    example = next((each for each in answered if each.resolution.data != each.merged.data), None)
    lines: list[RenderableType] = [table, Text()]
    if not wide:
        lines += [Text(f"{each.airport}  {'; '.join(each.resolution.reasons)}", style="dim") for each in answered]
        lines.append(Text())
    if example is not None:
        before = register[example.airport]
        kept = ", ".join(f"{value}" for field, value in example.merged.data.items() if before[field] != value)
        lines.append(
            Text.assemble(
                ("Both sides stay in every log, so the answer is yours to choose: ", "dim"),
                "read field by field, ",
                (example.airport, "bold"),
                " is ",
                (kept, "bold"),
                (", by a resolver of one's own.", "dim"),
            )
        )
    return Group(*lines)


# ----------------------------------------------------------------------------------------------- read model and proof


def read_model(model: Mapping[str, int], before: Mapping[str, int], *, agreed: bool) -> RenderableType:
    """Airports per state: the largest, and those that a correction changed."""
    changed = {state for state in {*model, *before} if model.get(state, 0) != before.get(state, 0)}
    largest = sorted(model, key=lambda state: (-model[state], state))[:LARGEST_SHOWN]
    shown = sorted({*largest, *changed} - {NO_STATE}, key=lambda state: (-model.get(state, 0), state))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8)
    grid.add_column(width=4, justify="right")
    grid.add_column(width=BAR_CELLS)
    grid.add_column(min_width=2, no_wrap=True)
    most = max(model.values(), default=1)
    for state in [*shown, NO_STATE]:
        count, difference = model.get(state, 0), model.get(state, 0) - before.get(state, 0)
        cells = max(1, round(BAR_CELLS * count / most))
        moved = Text(
            "" if not difference else f"{difference:+d}", style="bold green" if difference > 0 else "bold yellow"
        )
        name = "no state" if state == NO_STATE else state
        bar = Text("█" * cells, style="yellow" if state == NO_STATE else "blue")
        grid.add_row(name, f"{count:,}", bar, moved)
    same = "[green]✓[/green] the same table in all 3 stores" if agreed else "[bold red]✗ the stores differ[/bold red]"
    return Group(grid, Text(), Text.from_markup(same))


def proof(audit: Audit, *, converged: bool, seconds: float) -> RenderableType:
    """Counted in the files."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column()
    reference = audit.holdings[OFFICES[0]].digest
    for office in OFFICES:
        held = audit.holdings[office]
        style = "green" if held.digest == reference else "bold red"
        grid.add_row(office_text(office), f"{held.events:,} events", Text(_short(held.digest), style=style))
    counts = Table.grid(padding=(0, 1))
    counts.add_column(justify="right", width=6)
    counts.add_column()
    for number, what in ((audit.lost, "lost"), (audit.duplicates, "duplicated")):
        counts.add_row(Text(f"{number:,}", style="bold red" if number else "bold green"), what)
    counts.add_row(Text(f"{audit.written:,}", style="bold"), "written")
    said = Text.assemble(("✓ converged", "bold green"), f" in {seconds:.1f} s")
    if not converged:
        said = Text("✗ not converged", style="bold red")
    return Group(grid, Text(), counts, Text(), said)


def _short(digest: str) -> str:
    return f"{digest[:6]}…{digest[-6:]}"


def ending(
    end: Ending, register: Mapping[str, Airport], before: Mapping[str, int], seconds: float, width: int
) -> RenderableType:
    """Everything below the scenes."""
    title = Text.assemble(
        (f"{len(end.conflicts)} conflicts", "bold"),
        ", found by every office; answered by last-write-wins on reading",
    )
    half = width // 2
    panels = Table.grid(padding=(0, 0))
    panels.add_column(width=half)
    panels.add_column(width=width - half)
    panels.add_row(
        Panel(
            read_model(end.model, before, agreed=end.agreed),
            title="[bold]read model[/bold]: airports per state",
            title_align="left",
            box=box.ROUNDED,
            height=12,
        ),
        Panel(
            proof(end.audit, converged=end.converged, seconds=seconds),
            title="[bold]proof[/bold]: counted in the files",
            title_align="left",
            box=box.ROUNDED,
            height=12,
        ),
    )
    return Group(title, conflicts(end.conflicts, register, wide=width >= WIDTH), Text(), panels)


def width_of(console: Console) -> int:
    """How wide the picture is: as wide as it likes, or as a terminal that is narrower."""
    return min(WIDTH, console.width) if console.is_terminal else WIDTH
