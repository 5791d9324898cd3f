"""A holder's journal: what a router that was killed leaves, and who takes it over."""

from pathlib import Path

import pytest

from breakwater_gateway.router.desks import journal as module
from breakwater_gateway.router.desks.journal import Journal, read_journal
from breakwater_gateway.router.leases import Kept
from breakwater_gateway.runtime.telemetry import get_log

LOG = get_log()
A = Kept("a/1/1", 3, (5, 0, 0), (2, 0, 0))
B = Kept("b/1/1", 4, (0, 7, 0), (0, 0, 0))


def journal(folder: Path, name: str, boot: str = "boot-1") -> Journal:
    made = Journal(folder, name, LOG, boot=boot)
    assert made.open()
    return made


def die(made: Journal) -> None:
    """As kill -9 leaves it: unlocked, and everything in the file."""
    made.close(at_rest=False)


def test_the_last_word_on_each_lease_is_what_a_dead_router_leaves(tmp_path: Path) -> None:
    dead = journal(tmp_path, "dead")
    dead.write([Kept("a/1/1", 3), B, A])
    dead.write([Kept("b/1/1", 4, over=True)])
    die(dead)
    heir = journal(tmp_path, "heir")
    assert heir.adopt() == [A]
    assert heir.adopt() == []
    assert [path.name for path in tmp_path.iterdir()] == ["heir.journal"]


def test_an_heir_that_dies_leaves_what_it_took_over(tmp_path: Path) -> None:
    first = journal(tmp_path, "first")
    first.write([A])
    die(first)
    second = journal(tmp_path, "second")
    assert second.adopt() == [A]
    die(second)
    assert journal(tmp_path, "third").adopt() == [A]


def test_nobody_takes_over_from_the_living(tmp_path: Path) -> None:
    living = journal(tmp_path, "living")
    living.write([A])
    assert journal(tmp_path, "other").adopt() == []


def test_the_journal_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    dead = journal(tmp_path, "dead", boot="boot-0")
    dead.write([A])
    die(dead)
    assert journal(tmp_path, "heir").adopt() == []


def test_a_router_at_rest_leaves_nothing(tmp_path: Path) -> None:
    done = journal(tmp_path, "done")
    done.write([A])
    done.close(at_rest=True)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_breaks_off_was_never_acted_on(tmp_path: Path) -> None:
    dead = journal(tmp_path, "dead")
    dead.write([A])
    die(dead)
    path = tmp_path / "dead.journal"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        found = read_journal(whole[:cut], "boot-1")
        assert found in (None, [])
    assert read_journal(whole, "boot-1") == [A]
    assert read_journal(whole + b'["b/1/1",4,[9', "boot-1") == [A]
    assert read_journal(whole + b"nonsense\n", "boot-1") is None


def test_a_long_journal_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 500)
    made = journal(tmp_path, "long")
    for spent in range(200):
        made.write([Kept("a/1/1", 3, (spent, 0, 0)), Kept(f"x/1/{spent}", 1, over=True)])
    assert (tmp_path / "long.journal").stat().st_size < 2_000
    die(made)
    assert journal(tmp_path, "heir").adopt() == [Kept("a/1/1", 3, (199, 0, 0))]


def test_without_a_place_there_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not Journal(tmp_path / "file", "r", LOG, boot="b").open()
    assert not Journal(tmp_path, "r", LOG, boot="").open()
