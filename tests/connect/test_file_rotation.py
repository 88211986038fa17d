"""A file that is rotated under the reader, while it reads and while it is away: every line comes, once and in order."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from synckit_streams.connect import file_reader
from synckit_streams.connect.runner import Runner
from tests.connect.kit import declare, events_of, from_file, move_once, moving, numbers, order, until, write_lines


def renamed(path: Path, number: int) -> None:
    """As logrotate does: the file is moved away, and a new one is made."""
    for older in range(number - 1, 0, -1):
        path.with_name(f"{path.name}.{older}").rename(path.with_name(f"{path.name}.{older + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))


def cut_off(path: Path, number: int) -> None:
    """As logrotate's copytruncate does: the writer's file stays, and begins anew."""
    for older in range(number - 1, 0, -1):
        path.with_name(f"{path.name}.{older}").rename(path.with_name(f"{path.name}.{older + 1}"))
    shutil.copy2(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def _moved(runner: Runner, records: int) -> Callable[[], bool]:
    return lambda: runner.standings()[0].moved == records


Rotate = Callable[[Path, int], None]


@pytest.mark.parametrize("rotate", [renamed, cut_off])
async def test_rotated_while_it_is_read(tmp_path: Path, rotate: Rotate) -> None:
    """Also what was written just before, and not yet read."""
    path = tmp_path / "orders.jsonl"
    async with moving(declare(tmp_path, from_file())) as runner:
        for part in range(4):
            write_lines(path, [order(n) for n in range(part * 50, part * 50 + 50)])
            if part % 2 == 0:  # every other time the reader has not seen all of it
                await until(_moved(runner, part * 50 + 50))
            rotate(path, part + 1)
            write_lines(path, [])
        write_lines(path, [order(200)])
        await until(_moved(runner, 201))
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == list(range(201))


@pytest.mark.parametrize("rotate", [renamed, cut_off])
async def test_rotated_three_times_while_nobody_reads(tmp_path: Path, rotate: Rotate) -> None:
    """It goes on in the part that it was reading, and through those that follow."""
    path = tmp_path / "orders.jsonl"
    file = declare(tmp_path, from_file())
    write_lines(path, [order(n) for n in range(3)])
    await move_once(file)
    for part in range(1, 4):
        write_lines(path, [order(n) for n in range(part * 10, part * 10 + 3)])
        rotate(path, part)
    write_lines(path, [order(99)])
    (standing,) = await move_once(file)
    assert standing.error == ""
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [
        0,
        1,
        2,
        10,
        11,
        12,
        20,
        21,
        22,
        30,
        31,
        32,
        99,
    ]


async def test_a_csv_is_rotated_though_every_part_begins_alike(tmp_path: Path) -> None:
    """The header is the same in each, the rows' ids are not."""
    path = tmp_path / "rows.csv"
    source = {"kind": "file", "path": "rows.csv", "format": "csv", "type": "row", "aggregate_id": "/id"}
    file = declare(tmp_path, from_file(source=source))
    for part in range(3):
        path.write_text("id,n\n" + "".join(f"a,{part}\n" for _ in range(2)))
        await move_once(file)
        renamed(path, part + 1)
    found = [event.data["n"] for event in await events_of(f"sqlite:///{tmp_path}/shop.db")]
    assert found == ["0", "0", "1", "1", "2", "2"]


async def test_another_file_under_the_name_is_read_from_its_beginning_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The part that was read is gone: what it had left cannot be read any more."""
    path = tmp_path / "orders.jsonl"
    file = declare(tmp_path, from_file())
    write_lines(path, [order(n) for n in range(3)])
    await move_once(file)
    path.unlink()
    write_lines(path, [order(n) for n in range(10, 14)])
    await move_once(file)
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [0, 1, 2, 10, 11, 12, 13]
    assert "is gone, or was changed" in caplog.text


async def test_a_line_that_is_too_long_goes_to_the_dead_letter(tmp_path: Path) -> None:
    """And the one behind it is read."""
    path = tmp_path / "orders.jsonl"
    with path.open("wb") as raw:
        raw.write(b"x" * (file_reader.RECORD_BYTES_MAX + 5_000_000) + b"\n")
    write_lines(path, [order(1)])
    (standing,) = await move_once(declare(tmp_path, from_file()))
    assert (standing.moved, standing.dead) == (1, 1)
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [1]


async def test_what_an_editor_or_an_archiver_leaves_beside_it_is_not_read(tmp_path: Path) -> None:
    """Packed parts are passed over, and so is what was there before the pipeline began."""
    path = tmp_path / "orders.jsonl"
    write_lines(tmp_path / "orders.jsonl.1", [order(7)])
    write_lines(tmp_path / "orders.jsonl.2.gz", [order(8)])
    write_lines(path, [order(1)])
    await move_once(declare(tmp_path, from_file()))
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [1]


def test_what_is_written_to_a_file_just_after_it_was_renamed_is_read(tmp_path: Path) -> None:
    """Its writer has it open for a moment still; the reader goes on to the next one when nothing more has come."""
    path = tmp_path / "orders.jsonl"
    reader = file_reader.FileReader(path, rotated="", flips=lambda raw: False, whole=False)
    with path.open("a") as writer:
        writer.write("1\n")
        writer.flush()
        assert [piece.raw for piece in reader.read(10)] == [b"1"]
        path.rename(tmp_path / "orders.jsonl.1")
        path.write_text("3\n")
        assert reader.read(10) == []
        writer.write("2\n")
    deadline = time.monotonic() + 10
    found: list[bytes] = []
    while len(found) < 2 and time.monotonic() < deadline:
        found += [piece.raw for piece in reader.read(10)]
    assert found == [b"2", b"3"]
    reader.close()
