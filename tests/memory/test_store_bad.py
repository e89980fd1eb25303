"""Banks that are damaged, foreign, full, read-only, forged or gone: clear errors, nothing lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from banks import Place, entry
from server import Postgres

from agentpar.errors import BankError, MissingPackage, UsageError
from agentpar.memory.entry import Reading
from agentpar.memory.store import open_store
from agentpar.memory.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bank of 100 entries."""
    path = tmp_path / "folder" / "bank.db"
    with closing(opened(path)) as store:
        for n in range(100):
            store.put(entry(n, value="x" * 500), [1.0, n / 100])
        store.used(Reading("id1", "reader", 1, spared_tokens=10))
    return path


def opened(path: Path, **limits: object) -> SqliteStore:
    store = SqliteStore(path, **limits)
    store.open()
    return store


def count(path: Path) -> int:
    with closing(opened(path)) as store:
        return store.statistics().entries


def change(path: Path, statement: str) -> None:
    """As another program does that has the file but not the key."""
    with closing(sqlite3.connect(path)) as connection:
        done = connection.execute(statement)
        assert done.rowcount != 0
        connection.commit()


# What is no bank, or not this one's


def test_a_bank_of_another_version_is_left_as_it_is(path: Path) -> None:
    """The error has both versions."""
    change(path, "PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(BankError, match="of format 7, and this agentpar reads format 1: use the"):
        opened(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    """Its tables stay its own."""
    path = tmp_path / "other.db"
    change_new(path, "CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(BankError, match=r"other\.db' is a database of another program and no bank"):
        opened(path)
    assert path.read_bytes() == before
    assert not path.with_name("other.db.key").exists()


def change_new(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    """A text file is not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 1000)
    with pytest.raises(BankError, match="no SQLite database"):
        opened(path)
    assert path.read_text() == "my notes " * 1000


def test_a_file_that_was_cut_off_is_found_at_once(path: Path) -> None:
    """And not when the first row is missing."""
    whole = path.stat().st_size
    os.truncate(path, whole // 2 // 4096 * 4096)
    with pytest.raises(BankError, match=r"is cut off: .* of .* bytes|is damaged"):
        opened(path)


def test_damage_inside_is_told(path: Path) -> None:
    """Whichever row is met; the file is left as it is."""
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(BankError, match=r"is damaged .* put a copy"):
        listed(path)
    assert path.read_bytes() == data


def listed(path: Path) -> int:
    with closing(opened(path)) as store:
        return len(list(store.entries())) + store.statistics().entries


@contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, where the tests run as root, whom no permission binds."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter, unlike those of ``tmp_path``."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["the file", "the folder", "the folder of a new one"])
def test_a_read_only_place_is_told(open_folder: Path, what: str) -> None:
    """What it holds stays."""
    path = open_folder / "bank.db"
    if what != "the folder of a new one":
        with closing(opened(path)) as store:
            store.put(entry())
        path.chmod(0o444)
        path.with_name("bank.db.key").chmod(0o444)
    if what != "the file":
        open_folder.chmod(0o555)
    with (
        unprivileged(),
        pytest.raises(BankError, match=r"bank\.db' cannot be written .*another pl"),
    ):
        opened(path)
    open_folder.chmod(0o755)
    if what != "the folder of a new one":
        path.chmod(0o644)
        assert count(path) == 1


def test_a_folder_is_no_bank(tmp_path: Path) -> None:
    """Told as what it is, and not as a place that cannot be written."""
    with pytest.raises(BankError, match=r"is a folder: name a file in it"):
        opened(tmp_path)


def fill(store: SqliteStore) -> None:
    for n in range(100, 300):
        store.put(entry(n, value="y" * 3_000), [1.0, 0.5])


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """What does not fit is told; what was there is there, and later there is room again."""
    with closing(opened(path)) as store:
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(BankError, match=r"there is no room for more in the bank .* make room"):
            fill(store)
        kept = store.statistics().entries
        assert 100 <= kept < 300
        assert len(list(store.entries())) == kept
        assert store.find("space", "key7", "") is not None
        assert len(store.nearest("space", [1.0, 0.0], 200)) == kept
        store._connection.execute("PRAGMA max_page_count = 100000")
        assert store.put(entry(999)).new
    assert count(path) == kept + 1


def test_a_bank_that_another_holds_for_long_is_told(path: Path) -> None:
    """Nobody waits for ever."""
    with (
        closing(opened(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        store._connection.execute("PRAGMA busy_timeout = 50")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BankError, match="is in use"):
            store.put(entry(200))
        other.execute("ROLLBACK")
        assert store.put(entry(200)).new


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    """A file stands where a folder would have to be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BankError, match=r"there can be no bank at .* name another place"):
        opened(tmp_path / "file" / "bank.db")


# Forgeries


def test_the_key_is_the_owners_alone(path: Path) -> None:
    """64 hexadecimal digits beside the bank, that nobody else can read, and not in it."""
    key = path.with_name("bank.db.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    digits = key.read_text().strip()
    assert len(bytes.fromhex(digits)) == 32
    assert digits.encode() not in path.read_bytes()
    assert bytes.fromhex(digits) not in path.read_bytes()


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE entries SET body = replace(body, 'xxx', 'yyy') WHERE id = 'id7'",
        "UPDATE entries SET key = 'key200', namespace = 'space' WHERE id = 'id7'",
        "UPDATE entries SET namespace = 'else' WHERE id = 'id7'",
        "UPDATE entries SET expires = 9e9 WHERE id = 'id7'",
        "UPDATE entries SET vector = x'0000803f0000803f' WHERE id = 'id7'",
        "UPDATE entries SET revoked = 1 WHERE id = 'id7'",
        "UPDATE entries SET seal = '' WHERE id = 'id7'",
        "UPDATE entries SET seal = (SELECT seal FROM entries WHERE id = 'id8') WHERE id = 'id7'",
    ],
)
def test_a_row_that_another_program_changed_is_not_believed(path: Path, forgery: str) -> None:
    """It is served to nobody, counted, and told once; the others stay."""
    change(path, forgery)
    told: list[str] = []
    with closing(opened(path, tell=told.append)) as store:
        for key in ("key7", "key200"):
            assert store.find("space", key, "like7") is None
            assert store.find("else", key, "like7") is None
        assert "id7" not in [one.id for one, _ in store.nearest("space", [1.0, 0.0], 200)]
        assert "id7" not in [one.id for one in store.entries()]
        assert list(store.entries(revoked=True)) == []
        found = store.statistics()
        assert (found.entries, found.revoked, found.refused) == (99, 0, 1)
        assert len(told) == 1
        assert "entry id7 of the bank" in told[0]
        assert "changed by another program" in told[0]
        assert store.find("space", "key8", "like8") is not None


def test_an_honest_finding_replaces_a_forged_one(path: Path) -> None:
    """The call is made again, and what it brings is believed."""
    change(path, "UPDATE entries SET body = replace(body, 'xxx', 'yyy') WHERE id = 'id7'")
    with closing(opened(path)) as store:
        put = store.put(entry(7, value="x" * 500))
        assert put.new
        assert store.find("space", "key7", "like7") == put.entry
        assert store.statistics().refused == 0


def test_a_forgery_is_not_sealed_by_revoking_it(path: Path) -> None:
    """It would be believed to be an entry of ours that was withdrawn."""
    change(path, "UPDATE entries SET body = replace(body, 'xxx', 'yyy') WHERE id = 'id7'")
    with closing(opened(path)) as store:
        assert store.revoke("id7").entries == ("id7",)
        assert list(store.entries(revoked=True)) == []
        assert store.put(entry(7, value="x" * 500)).revoked


def test_a_forged_ledger_is_not_believed(path: Path) -> None:
    """Neither readings, from which credit is learned, nor producers, who vouch for an entry."""
    change(path, "UPDATE readings SET spared_tokens = 1000000")
    change(path, "INSERT INTO producers VALUES ('id1', 'forged', 1, 1, 9999, '00')")
    with closing(opened(path)) as store:
        assert store.readings() == []
        found = store.statistics()
        assert (found.readings, found.spared_tokens, found.refused) == (0, 0, 1)
        assert store.producers("id1") == [("run", 1, 1)]


def test_without_its_key_a_bank_stays_shut(path: Path) -> None:
    """No new one is made, under which all would look forged; the old one put back opens it."""
    key = path.with_name("bank.db.key")
    kept = key.rename(path.with_name("kept"))
    with pytest.raises(BankError, match=r"key of the bank is gone: put bank\.db\.key back"):
        opened(path)
    assert not key.exists()
    key.write_text("ab" * 32)
    with pytest.raises(BankError, match="sealed under another key"):
        opened(path)
    for text in ("no digits", "abcd", "\xff"):
        key.write_text(text, encoding="latin-1")
        with pytest.raises(BankError, match=r"cannot be read|is no key"):
            opened(path)
    kept.replace(key)
    assert count(path) == 100


def test_the_key_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no file, and no other key will do; a short one is a mistake."""
    path = tmp_path / "bank.db"
    monkeypatch.setenv("AGENTPAR_BANK_KEY", "a secret of some length")
    with closing(opened(path)) as store:
        store.put(entry())
    assert not path.with_name("bank.db.key").exists()
    assert count(path) == 1
    monkeypatch.setenv("AGENTPAR_BANK_KEY", "another secret of some length")
    with pytest.raises(BankError, match="sealed under another key"):
        opened(path)
    monkeypatch.setenv("AGENTPAR_BANK_KEY", "short")
    with pytest.raises(UsageError, match="AGENTPAR_BANK_KEY has 5 characters") as told:
        opened(path)
    assert "short" not in str(told.value)


def test_without_numpy_only_the_nearest_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the command that installs it."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with closing(opened(tmp_path / "bank.db")) as store:
        store.put(entry(), [1.0, 0.0])
        assert store.find("space", "key1", "") is not None
        with pytest.raises(MissingPackage, match=r"numpy.*pip install 'agentpar"):
            store.nearest("space", [1.0, 0.0], 1)


# Postgres


@pytest.mark.postgres
def test_a_postgres_that_goes_away_is_told_and_comes_back(postgres: Postgres) -> None:
    """What it holds is there when it is back; no store has to be opened anew."""
    store = open_store(postgres.new_database())
    store.open()
    store.put(entry(1), [1.0, 0.0])
    postgres.stop()
    try:
        for _ in range(2):
            with pytest.raises(BankError, match=r"on Postgres at .* is gone: "):
                store.put(entry(2))
    finally:
        postgres.start()
    # A crash of the server may cost what came within the last moment; this is not claimed here.
    store.put(entry(1), [1.0, 0.0])
    assert store.put(entry(2), [0.0, 1.0]).new
    assert store.statistics().entries == 2
    assert [one.id for one, _ in store.nearest("space", [1.0, 0.0], 1)] == ["id1"]
    store.close()


@pytest.mark.postgres
def test_a_postgres_bank_of_another_version_or_key(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is left as it is."""
    import psycopg

    url = postgres.new_database()
    store = open_store(url)
    store.open()
    store.put(entry())
    store.close()
    monkeypatch.setenv("AGENTPAR_BANK_KEY", "a secret of some length")
    with pytest.raises(BankError, match="under another key, or under none: set AGENTPAR_BANK_KEY"):
        open_store(url).open()
    monkeypatch.delenv("AGENTPAR_BANK_KEY")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE agentpar_bank_meta SET version = 9")
    with pytest.raises(BankError, match="is of format 9, and this agentpar reads format 1"):
        store.open()


@pytest.mark.postgres
def test_a_forged_row_in_postgres(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key in the environment, rows are sealed there as well."""
    import psycopg

    monkeypatch.setenv("AGENTPAR_BANK_KEY", "a secret of some length")
    url = postgres.new_database()
    store = open_store(url)
    store.open()
    store.put(entry(1), [1.0, 0.0])
    store.put(entry(2), [1.0, 1.0])
    store.used(Reading("id2", "reader", 1, 1, 0.1, 3, 4))
    assert len(store.readings()) == 1
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE agentpar_bank_entries SET body = replace(body, 'found', 'forged')"
            " WHERE id = 'id1'"
        )
    assert store.find("space", "key1", "") is None
    assert [one.id for one, _ in store.nearest("space", [1.0, 0.0], 5)] == ["id2"]
    assert store.statistics().refused == 1
    store.close()


@pytest.mark.postgres
def test_a_postgres_that_may_not_be_written_is_told(postgres: Postgres) -> None:
    """A standby, say."""
    url = postgres.new_database()
    store = open_store(url)
    store.open()
    store.put(entry())
    store.close()
    reader = open_store(f"{url}&options=-c%20default_transaction_read_only%3Don")
    reader.open()
    with pytest.raises(BankError, match="cannot be written"):
        reader.put(entry(2))
    reader.close()


@pytest.mark.postgres
def test_no_postgres_there_is_told_without_the_password() -> None:
    """Within seconds."""
    store = open_store("postgresql://me:secret@127.0.0.1:1/db")
    with pytest.raises(BankError, match="is gone") as told:
        store.open()
    assert "secret" not in str(told.value)


def test_clocks_that_differ_do_not_matter(shared: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that lives two days ahead of the store neither takes over a lease nor finds an entry
    expired. A file belongs to one host, whose clock is the store's."""
    here, there = shared.another(), shared.another()
    lease = here.lease("space", "l", "a", 1, 1, 3600)
    here.put(entry(expires=here.now() + 3600))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * 86_400)
    assert there.lease("space", "l", "b", 1, 1, 60) == lease
    assert there.find("space", "key1", "") is not None
    assert there.put(entry(2, created=1.0)).entry.created == pytest.approx(here.now(), abs=60)
    assert there.now() == pytest.approx(here.now(), abs=60)
