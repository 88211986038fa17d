"""Draws demo.svg: runs the demo, and keeps its terminal as a picture.

Run it from anywhere: python docs/draw_demo.py [FILE]
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from synckit_streams.cli import demo
from synckit_streams.cli.picture import WIDTH
from synckit_streams.cli.shelf import Files
from synckit_streams.cli.story import Story

THEME = TerminalTheme(
    (24, 26, 32),
    (214, 218, 228),
    [(60, 64, 76), (240, 113, 120), (140, 200, 120), (232, 190, 100),
     (100, 150, 240), (198, 140, 240), (90, 200, 220), (214, 218, 228)],
    [(92, 98, 114), (240, 113, 120), (140, 200, 120), (232, 190, 100),
     (100, 150, 240), (198, 140, 240), (90, 200, 220), (255, 255, 255)],
)  # fmt: skip

# What the reader's own machine has; rich's own template loads a font from elsewhere.
FONT = "ui-monospace, 'Cascadia Mono', 'JetBrains Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


async def run(console: Console) -> bool:
    """The demo over a real server, on this console; gives whether it converged."""
    with tempfile.TemporaryDirectory() as folder:
        async with demo.meeting_place("nats") as broker:
            story = Story(Files(Path(folder)), broker.url, broker.topic, broker.server)
            return (await demo.tell(console, story, broker.name)).converged


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "demo.svg"
    with tempfile.TemporaryFile("w") as nowhere:
        console = Console(
            record=True, width=WIDTH, file=nowhere, force_terminal=True, force_interactive=False,
            color_system="truecolor", highlight=False,
        )  # fmt: skip
        if not asyncio.run(run(console)):
            sys.exit("the demo did not converge")
    svg = console.export_svg(title="synckit demo", theme=THEME, unique_id="demo")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONT)
    file.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
