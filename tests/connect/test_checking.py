"""What is wrong with a file is said as a whole: each problem with its line, its column and what to do."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from synckit_streams.connect.document import Document
from synckit_streams.connect.loading import load
from synckit_streams.errors import ConfigError

GOOD = """
name: orders
source:
  kind: file
  path: orders.jsonl
  type: /kind
  aggregate_id: /order
sink:
  kind: store
  store: sqlite:///shop.db
  topic: orders
"""


def problems(folder: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    """LINE:COLUMN message (hint), of one file."""
    file = folder / "p.yaml"
    file.write_text(dedent(text).lstrip("\n"))
    return [str(each).removeprefix(f"{file}:") for each in load([file], environment or {}).problems]


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_file_has_none(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("  topic: orders", "  topci: orders"), "10:3: unknown key 'topci' (did you mean `topic`?)"),
        (changed("name: orders", "name: orders\nrat: 3"), "2:1: unknown key 'rat' (did you mean `rate`?)"),
        (changed("  path: orders.jsonl\n", ""), "3:3: `path` is missing (The file. It need not be there yet.)"),
        (changed("kind: file", "kind: fiel"), "3:9: unknown kind of source (did you mean file?)"),
        (
            changed("kind: file", "format: csv"),
            "3:3: `kind` is missing: it says which source it is (one of file, http, outbox, postgres_outbox, topic)",
        ),
        (changed("sqlite:///shop.db", "postgrsql://h/d"), "9:10: no store for postgrsql: (did you mean postgresql:?)"),
        (changed("sqlite:///shop.db", "shop.db"), "9:10: that is not the URL of a store (known: "),
        (changed("sqlite:///shop.db", "'memory:'"), "9:10: a store in memory is gone with the process"),
        (
            changed("name: orders", "name: orders\nbatch: {records: 0}"),
            "2:18: `records`: input should be greater than or equal to 1 (At most so many records.)",
        ),
        (changed("name: orders", "name: orders\nrate: fast"), "2:7: `rate`: input should be a valid number"),
        (changed("name: orders", "name: or ders"), "1:7: `name`: string should match pattern"),
        (changed("type: /kind", "type: /kind~"), "5:9: that is not a JSON pointer"),
        (changed("  type: /kind\n", ""), "3:3: format jsonl needs type"),
        (changed("name: orders", "name: orders\nname: two"), "2:1: the key 'name' stands twice"),
        (changed("name: orders", "name: [orders"), "2:7: not YAML: "),
        (changed("name: orders", "? [a]\n: b\nname: orders"), "1:3: a key is text"),
        ("[]", "1:1: a file is one pipeline, or a list of them under `pipelines`"),
        ("", "1:1: a file is one pipeline, or a list of them under `pipelines`"),
        ("pipelines: []", "1:12: `pipelines` is a list of pipelines"),
        ("pipeline: []", "1:1: unknown key 'pipeline'"),
        ("a: &a [*a]", "1:4: an alias stands for itself"),
        (
            changed(
                "  kind: store\n  store: sqlite:///shop.db\n  topic: orders", "  kind: topic\n  connector: nats://h"
            ),
            "8:3: the sink has no topic (give it `topic`, or `topics`)",
        ),
        (changed("  topic: orders\n", ""), "8:3: the sink has no topic, and the records have none (give it `topic`)"),
        (
            changed("name: orders", "name: orders\ndead_letter: {kind: store, store: 'sqlite:///dead.db'}"),
            "2:14: the dead letter has no topic (a letter has none of its own)",
        ),
        (
            changed("name: orders", "name: orders\nstore: sqlite:///shop.db"),
            "10:10: this store is another thing's already (a store has one owner; the other one is at ",
        ),
        (
            changed("name: orders", "name: orders\ntransforms:\n- kind: filter\n  field: /x\n  opp: eq"),
            "5:3: unknown key 'opp' (did you mean `op`?)",
        ),
        (
            changed("name: orders", "name: orders\ntransforms:\n- kind: map\n  set: {/a: 1, b: 2}"),
            "4:16: that is not a JSON pointer, nor one of id, type",
        ),
    ],
)
def test_a_problem_has_its_place_and_a_hint(tmp_path: Path, text: str, said: str) -> None:
    found = problems(tmp_path, text)
    assert found
    assert any(each.startswith(said) for each in found), found


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = changed("kind: file", "kind: file\n  pth: x").replace("topic: orders", "topic: orders\nrate: -1")
    assert [each.partition(" ")[0] for each in problems(tmp_path, text)] == ["4:3:", "12:7:"]


def test_two_pipelines_have_two_names_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.lstrip())
    (tmp_path / "b.yml").write_text("# another\n" + GOOD.lstrip())
    loaded = load([tmp_path], {})
    (problem,) = loaded.problems
    assert (problem.file.name, problem.line, problem.column) == ("b.yml", 2, 7)
    assert problem.message == "there are two pipelines 'orders'"
    assert problem.hint.endswith("a.yaml:1")


def test_two_pipelines_own_two_stores_unless_a_store_can_be_shared(tmp_path: Path) -> None:
    """A node that has a SQLite file open writes for others; RocksDB and Redis have one process each."""
    for store, shared in (
        ("sqlite:///shop.db", True),
        ("rocksdb:///shop", False),
        ("redis://h/0?name=shop", False),
        ("postgresql://h/shop", True),
    ):
        for name in ("one", "two"):
            text = changed("sqlite:///shop.db", store).replace("name: orders", f"name: {name}")
            (tmp_path / f"{name}.yaml").write_text(text.lstrip())
        assert (not load([tmp_path], {}).problems) == shared, store


def test_a_variable_is_put_in_before_anything_is_checked(tmp_path: Path) -> None:
    """What is not in quotes may become a number; a default may be empty; `$${` is `${`."""
    text = 'a: ${N}\nb: "${N}"\nc: ${X:-}\nd: ${X:-7}x\ne: $${N}\nf: pre-${N}-${M:-m}\ng: ${N'
    document = Document(tmp_path / "p", text, {"N": "12"})
    assert document.problems == []
    assert document.value == {
        "a": 12,
        "b": "12",
        "c": None,
        "d": "7x",
        "e": "${N}",
        "f": "pre-12-m",
        "g": "${N",
    }


def test_a_variable_that_is_missing_is_named_with_its_line_and_the_others_too(tmp_path: Path) -> None:
    text = changed("orders.jsonl", "${FOLDER}/orders.jsonl").replace("topic: orders", "topci: ${TOPIC}")
    found = problems(tmp_path, text)
    assert found == [
        "4:9: the variable FOLDER is not set (set it, or write ${FOLDER:-default})",
        "10:3: unknown key 'topci' (did you mean `topic`?)",
        "10:10: the variable TOPIC is not set (set it, or write ${TOPIC:-default})",
    ]


@pytest.mark.parametrize(
    "text",
    [
        changed("sqlite:///shop.db", "mysql://u:${SECRET}@h/d"),
        changed("name: orders", "name: ${SECRET}"),
        changed("kind: file", "kind: ${SECRET}"),
        changed("/kind", "/${SECRET}~"),
        changed("name: orders", "name: orders\nrate: ${SECRET}"),
        changed("name: orders", "name: orders\ntransforms: ${SECRET}"),
        changed("kind: store", "kind: http\n  url: ${SECRET}"),
    ],
)
def test_a_secret_is_never_said(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with a value, no message repeats what a variable said."""
    found = problems(tmp_path, text, {"SECRET": "hunter2!"})
    assert found
    assert "hunter2" not in str(found)


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"name: a\nb: \xff\n")
    assert [str(each) for each in load([file], {}).problems] == [f"{file}:2:1: not UTF-8"]
    file.write_bytes(b"name: a\x00b")
    assert "control characters" in str(load([file], {}).problems[0])


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load([tmp_path / "no.yaml"], {})
    with pytest.raises(ConfigError, match="no YAML file in"):
        load([tmp_path], {})
