"""What every bank promises, whatever database it lies in."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from banks import Place, entry

from agentpar.errors import BankError, UsageError
from agentpar.memory.entry import Entry, Producer, Reading
from agentpar.memory.store import Put, Statistics, Store, open_store

# Entries


def test_an_entry_comes_back_as_it_was(store: Store) -> None:
    """Every field of it, what is odd in its texts included; only the time is the store's."""
    odd = "ü \N{SNOWMAN} \U0001f600 \ud800 \0 ' % ? \n"
    given = entry(
        namespace=odd,
        args={"q": odd, "n": None},
        question=odd,
        value=[{odd: [1.5, True, None, 10**30]}],
        sources=(odd, "https://site.example/a"),
        producer=Producer(odd, 7, 3),
        parents=("p1", "p2"),
        literal=True,
        seconds=1.25,
        tokens=12,
        cost_usd=0.001,
        created=5.0,
        expires=store.now() + 1000,
    )
    before = store.now()
    put = store.put(given)
    assert put.new
    assert not put.revoked
    assert before <= put.entry.created <= store.now()
    assert put.entry == replace(given, created=put.entry.created)
    assert store.find(odd, "key1", "") == put.entry
    assert list(store.entries()) == [put.entry]
    assert store.producers("id1") == [(odd, 7, 3)]


def test_equal_findings_are_one_entry_with_more_producers(store: Store) -> None:
    """The second is not new; a task that says it twice is one producer."""
    first = store.put(entry())
    again = entry(producer=Producer("other", 9, 2))
    assert store.put(again) == Put(first.entry, new=False)
    assert store.put(again) == Put(first.entry, new=False)
    assert store.producers("id1") == [("run", 1, 1), ("other", 9, 2)]
    assert store.statistics().entries == 1


def test_merged_entries_live_as_long_as_the_longest(store: Store) -> None:
    """And may be shown where one of them may."""
    now = store.now()
    store.put(entry(expires=now + 100))
    assert store.put(entry(expires=now + 50)).entry.expires == now + 100
    assert store.put(entry(expires=now + 200, literal=True)).entry.expires == now + 200
    assert store.put(entry(expires=None)).entry.expires is None
    found = store.find("space", "key1", "")
    assert found is not None
    assert found.literal
    assert found.expires is None


def test_the_latest_with_the_key_answers_else_one_that_is_like_it(store: Store) -> None:
    """An equal call goes before one in other words, whichever is later."""
    store.put(entry(1, key="k", like="l"))
    store.put(entry(2, key="k", like="l"))
    store.put(entry(3, key="other", like="l"))
    assert _id(store.find("space", "k", "l")) == "id2"
    assert _id(store.find("space", "none", "l")) == "id3"
    assert store.find("space", "none", "none") is None


def test_namespaces_do_not_see_each_other(store: Store) -> None:
    """Neither entries nor the nearest nor leases nor counts."""
    store.put(entry(1), [1.0, 0.0])
    store.put(entry(2, namespace="else", key="key1", like="like1"), [1.0, 0.0])
    assert _id(store.find("space", "key1", "like1")) == "id1"
    assert _id(store.find("else", "key1", "like1")) == "id2"
    assert store.find("third", "key1", "like1") is None
    assert [one.id for one, _ in store.nearest("space", [1.0, 0.0], 5)] == ["id1"]
    assert store.nearest("third", [1.0, 0.0], 5) == []
    assert [one.id for one in store.entries("else")] == ["id2"]
    lease = store.lease("space", "l", "a", 1, 1, 60)
    assert store.lease("else", "l", "b", 1, 1, 60).holder.run_id == "b"
    assert lease.holder.run_id == "a"
    store.used(Reading("id1", "reader", 1))
    assert store.statistics("space").readings == 1
    assert store.statistics("else").readings == 0
    assert store.statistics("else").entries == 1
    assert store.statistics("else").leases == 1


def test_what_has_expired_is_not_there(place: Place) -> None:
    """Not found, not near, not listed, not counted; and dropped when it is asked for."""
    store = place.another()
    store.put(entry(1, expires=store.now() + 30), [1.0, 0.0])
    store.put(entry(2), [0.0, 1.0])
    assert store.find("space", "key1", "like1") is not None
    assert len(store.nearest("space", [1.0, 0.0], 5)) == 2
    place.wait(35)
    assert store.find("space", "key1", "like1") is None
    assert [one.id for one, _ in store.nearest("space", [1.0, 0.0], 5)] == ["id2"]
    assert [one.id for one in store.entries()] == ["id2"]
    assert store.statistics().entries == 1
    assert store.remove_expired() == 1
    assert store.remove_expired() == 0


def test_what_has_expired_may_be_found_anew(place: Place) -> None:
    """It is new then, and its ledger goes on."""
    store = place.another()
    store.put(entry(expires=store.now() + 20), [1.0, 0.0])
    store.used(Reading("id1", "reader", 1))
    place.wait(25)
    put = store.put(entry(producer=Producer("later", 1)), [1.0, 0.0])
    assert put.new
    assert _id(store.find("space", "key1", "")) == "id1"
    assert [one.id for one, _ in store.nearest("space", [1.0, 0.0], 5)] == ["id1"]
    assert store.producers("id1") == [("run", 1, 1), ("later", 1, 0)]
    assert len(store.readings("id1")) == 1


def test_the_ledger_outlives_the_entry(place: Place) -> None:
    """A page turns out to lie after what came of it has expired: its answers are found still."""
    store = place.another()
    store.put(entry(expires=store.now() + 20))
    store.put(entry(2, parents=("id1",), producer=Producer("second", 1)))
    store.used(Reading("id1", "reader", 4, spared_seconds=2.0))
    place.wait(25)
    assert store.remove_expired() == 1
    assert [one.run_id for one in store.readings("id1")] == ["reader"]
    revoked = store.revoke("https://site.example/1")
    assert revoked.entries == ("id1", "id2")
    assert set(revoked.answers) == {"run", "second", "reader"}
    assert store.put(entry()).revoked
    assert store.find("space", "key1", "like1") is None


def test_many_entries_are_listed_in_their_order(store: Store) -> None:
    """More than are read at once, while others come."""
    for n in range(450):
        store.put(entry(n))
    listed = []
    for at, one in enumerate(store.entries()):
        listed.append(one.id)
        if at == 10:
            store.put(entry(450))
    assert listed == [f"id{n}" for n in range(451)]


@pytest.mark.parametrize("limit", [300, 10_000_000])
def test_an_entry_may_not_be_too_large(place: Place, limit: int) -> None:
    """The error has the size and the limit; 10 MB are kept where they are allowed."""
    store = place.another(max_entry_bytes=limit)
    large = entry(value="x" * (10_000_000 - 1_000))
    if limit == 300:
        with pytest.raises(BankError, match=r"'look: 1' is an entry of 9,999,\d+ bytes.* 300 at"):
            store.put(large)
        assert store.statistics() == Statistics()
    else:
        assert store.put(large).entry.value == large.value


def test_a_run_may_not_flood_the_bank(place: Place) -> None:
    """Its quota counts new entries; other runs have their own."""
    store = place.another(max_entries=2)
    store.put(entry(1))
    store.put(entry(2))
    with pytest.raises(BankError, match="run 'run' has brought 2 entries"):
        store.put(entry(3))
    assert not store.put(entry(2)).new
    assert store.put(entry(3, producer=Producer("other", 1))).new
    assert store.statistics().entries == 3


def test_what_is_no_json_is_a_mistake(store: Store) -> None:
    """And nothing is kept of it."""
    with pytest.raises(UsageError, match="'look: 1' is no JSON data"):
        store.put(entry(value=object()))
    assert store.statistics() == Statistics()


# The nearest


def test_the_nearest_come_first(store: Store) -> None:
    """By cosine, whatever the length of the vectors; those without one do not take part."""
    store.put(entry(1), [1.0, 0.0])
    store.put(entry(2), [30.0, 30.0])
    store.put(entry(3), [0.0, 2.0])
    store.put(entry(4), [-1.0, 0.0])
    store.put(entry(5))
    found = store.nearest("space", [5.0, 0.1], 3)
    assert [one.id for one, _ in found] == ["id1", "id2", "id3"]
    assert [cosine for _, cosine in found] == pytest.approx([0.9998, 0.7210, 0.01999], abs=1e-3)
    assert len(store.nearest("space", [1.0, 0.0], 100)) == 4
    assert store.nearest("space", [1.0, 0.0], 0) == []


def test_the_nearest_are_what_others_wrote(shared: Place) -> None:
    """A store that has looked before sees what another wrote, withdrew and dropped since."""
    one, other = shared.another(), shared.another()
    for n in range(100):
        other.put(entry(n), [1.0, n / 100])
    assert [e.id for e, _ in one.nearest("space", [1.0, 0.0], 3)] == ["id0", "id1", "id2"]
    other.revoke("id0")
    other.put(entry(200), [1.0, 0.001])
    assert [e.id for e, _ in one.nearest("space", [1.0, 0.0], 3)] == ["id200", "id1", "id2"]
    other.put(entry(300))
    other.put(entry(300), [1.0, 0.002])  # it gets a vector when it is found again
    assert [e.id for e, _ in one.nearest("space", [1.0, 0.0], 2)] == ["id200", "id300"]


def test_many_withdrawn_do_not_hide_the_rest(store: Store) -> None:
    """Even where all that is nearest is gone."""
    for n in range(300):
        store.put(entry(n, sources=("https://lies.example/",)), [1.0, n / 1e4])
    store.put(entry(999), [0.0, 1.0])
    assert len(store.nearest("space", [1.0, 0.0], 8)) == 8
    store.revoke("https://lies.example/")
    assert [e.id for e, _ in store.nearest("space", [1.0, 0.0], 8)] == ["id999"]


def test_an_embedding_of_another_size_is_refused(shared: Place) -> None:
    """The error has both sizes and a way out; also in a process that comes later."""
    store = shared.another()
    store.put(entry(1), [1.0, 0.0])
    for later in (store, shared.another()):
        with pytest.raises(BankError, match="embeddings of 2 numbers, and this one has 3: use the"):
            later.put(entry(2), [1.0, 0.0, 0.0])
        with pytest.raises(BankError, match="of 2 numbers, and this one has 1"):
            later.nearest("space", [1.0], 1)
    assert store.put(entry(2)).new  # nothing of it was kept
    assert store.statistics().entries == 2


@pytest.mark.parametrize("vector", [[], [float("nan")], [1.0, float("inf")], [1e300]])
def test_an_embedding_is_finite_numbers(store: Store, vector: list[float]) -> None:
    """Anything else is the caller's mistake."""
    with pytest.raises(UsageError, match="an embedding is finite numbers"):
        store.put(entry(), vector)
    assert store.statistics().entries == 0


def test_a_vector_of_zeros_is_near_nothing(store: Store) -> None:
    """A text without words has one: it neither fails nor comes first."""
    store.put(entry(1), [0.0, 0.0])
    store.put(entry(2), [1.0, 0.0])
    assert [e.id for e, _ in store.nearest("space", [1.0, 0.0], 1)] == ["id2"]
    assert store.nearest("space", [0.0, 0.0], 1)[0][1] == 0.0


# The ledger


def test_readings_add_up(store: Store) -> None:
    """Each is kept with the store's time, in its order."""
    store.put(entry())
    before = store.now()
    first = Reading("id1", "reader", 3, 2, 1.5, 100, 20, at=1.0)
    store.used(first)
    store.used(Reading("id2", "reader", 4, spared_seconds=0.5))
    found = store.readings()
    assert [one.entry_id for one in found] == ["id1", "id2"]
    assert before <= found[0].at <= store.now()
    assert found[0] == replace(first, at=found[0].at)
    assert store.readings("id1") == found[:1]
    assert store.readings("none") == []
    told = store.statistics()
    assert (told.readings, told.spared_seconds, told.spared_tokens) == (2, 2.0, 100)


def test_statistics_of_an_empty_bank(store: Store) -> None:
    """Zeros."""
    assert store.statistics() == Statistics()
    assert store.statistics("space") == Statistics()
    assert store.readings() == []
    assert store.producers("none") == []
    assert store.remove_expired() == 0


def test_bytes_are_those_of_what_stands(store: Store) -> None:
    """What was withdrawn counts elsewhere."""
    store.put(entry(1, value="x" * 5_000))
    store.put(entry(2))
    whole = store.statistics().bytes
    assert 5_000 < whole < 6_000
    store.revoke("id1")
    told = store.statistics()
    assert (told.entries, told.revoked) == (1, 1)
    assert told.bytes < 1_000


# Revocation


def family(store: Store) -> None:
    """1 lies; 2 was made of it, 3 of 2, 4 of 1 and 3; 5 is of another site."""
    store.put(entry(1, sources=("https://lies.example/a?b=1", "https://site.example/")))
    store.put(entry(2, parents=("id1",), producer=Producer("two", 1)))
    store.put(entry(3, parents=("id2",), producer=Producer("three", 1)))
    store.put(entry(4, parents=("id3", "id1"), producer=Producer("four", 1)))
    store.put(entry(5, sources=("https://lies.example.org/a",), producer=Producer("five", 1)))
    store.used(Reading("id3", "reader", 1))
    store.used(Reading("id5", "innocent", 1))


@pytest.mark.parametrize(
    "source",
    ["https://lies.example/a?b=1", "https://lies.example/", "https://lies.example", "id1", "run"],
)
def test_what_is_withdrawn_takes_what_was_made_of_it(store: Store, source: str) -> None:
    """By an address, its beginning, its host, an entry or a run; parents first, all answers."""
    family(store)
    revoked = store.revoke(source, "it lies")
    assert revoked.entries == ("id1", "id2", "id3", "id4")
    assert revoked.answers == ("run", "two", "three", "four", "reader")
    assert revoked.why == "it lies"
    assert [one.id for one in store.entries()] == ["id5"]
    assert [one.id for one in store.entries(revoked=True)] == ["id1", "id2", "id3", "id4"]
    for n in (1, 2, 3, 4):
        assert store.find("space", f"key{n}", f"like{n}") is None
    assert store.statistics().revoked == 4


@pytest.mark.parametrize(
    "source", ["https://lies.exam", "lies", "https://", "https", "i", "id", "ru"]
)
def test_half_a_name_withdraws_nothing(store: Store, source: str) -> None:
    """A host, an id and a run are meant as a whole."""
    family(store)
    assert store.revoke(source).entries == ()
    assert store.statistics().revoked == 0


def test_a_run_is_revoked_with_its_teams(store: Store) -> None:
    """ "R" means R.1 and R.12 as well, and not R2, nor a run that somebody has named R.2b or R.3,
    nor the teams of R.4."""
    runs = {"R": 0, "R.1": 1, "R.12": 12, "R2": 0, "R-1": 0, "R.2b": 0, "R.3": 0, "R.4.1": 1}
    for n, (run, team) in enumerate(runs.items()):
        store.put(entry(n, producer=Producer(run, 1, team)))
    revoked = store.revoke("R")
    assert (revoked.answers, revoked.runs) == (("R",), ("R", "R.1", "R.12"))
    assert [one.producer.run_id for one in store.entries()] == list(runs)[3:]


def test_touched_answers_are_named_as_users_know_them(store: Store) -> None:
    """Whoever asked several teams has the answer of R, and finds R.1 and R.3 by it; a run that a
    user has called R.2 is a run of its own."""
    store.put(entry(1, producer=Producer("R.3", 1, 3)))
    store.used(Reading("id1", "R.1", 1, 1))
    store.used(Reading("id1", "R.2", 1))
    store.used(Reading("id1", "R.1", 2, 1))
    revoked = store.revoke("id1")
    assert revoked.answers == ("R", "R.2")
    assert revoked.runs == ("R.3", "R.1", "R.2")


def test_where_it_comes_from_is_known_of_what_is_not_kept(store: Store) -> None:
    """Nobody finds it, and its source leads to what was made of it and to whose answers it was in;
    after that it is known as withdrawn."""
    page = entry(1, producer=Producer("reader", 1))
    assert store.trace(page)
    assert store.trace(entry(1, producer=Producer("cached", 1)))
    assert store.find("space", "key1", "like1") is None
    assert list(store.entries()) == []
    store.put(entry(2, parents=("id1",), producer=Producer("other", 1)))
    revoked = store.revoke("https://site.example/1")
    assert revoked.entries == ("id1", "id2")
    assert revoked.answers == ("reader", "cached", "other")
    assert not store.trace(page)
    assert not store.trace(entry(3, parents=("id1",)))


def test_revoked_stays_revoked(store: Store) -> None:
    """Whoever brings it again is told so, and is among the answers from then on."""
    family(store)
    store.revoke("id2")
    put = store.put(entry(2, producer=Producer("again", 1)), [1.0, 0.0])
    assert (put.new, put.revoked, put.entry.id) == (False, True, "id2")
    assert store.find("space", "key2", "like2") is None
    assert store.nearest("space", [1.0, 0.0], 5) == []
    revoked = store.revoke("id2", "still")
    assert revoked.entries == ("id2", "id3", "id4")
    assert "again" in revoked.answers


def test_what_is_made_of_a_withdrawn_entry_comes_too_late(store: Store) -> None:
    """A team was under way with it: what it brings is withdrawn at once, and so on down."""
    store.put(entry(1))
    store.put(entry(9, parents=("id8",)))  # of what is not there yet
    store.revoke("id1")
    put = store.put(entry(8, parents=("id1",)), [1.0, 0.0])
    assert (put.new, put.revoked) == (True, True)
    assert store.find("space", "key8", "") is None
    assert store.find("space", "key9", "") is None
    assert store.nearest("space", [1.0, 0.0], 5) == []


def test_a_second_way_to_a_finding_has_its_parents_too(store: Store) -> None:
    """An entry that was also made of a lie goes with it, whoever was first."""
    store.put(entry(1))
    store.put(entry(2))
    store.put(entry(2, parents=("id1",), producer=Producer("second", 1)))
    assert store.revoke("id1").entries == ("id1", "id2")


def test_circles_end(store: Store) -> None:
    """No program makes entries of each other, but a bank that says so does not hang."""
    store.put(entry(1, parents=("id2",)))
    store.put(entry(2, parents=("id1",)))
    assert set(store.revoke("id1").entries) == {"id1", "id2"}


def test_a_long_line_of_descent(store: Store) -> None:
    """A thousand generations, in their order."""
    store.put(entry(0))
    for n in range(1, 1000):
        store.put(entry(n, parents=(f"id{n - 1}",)))
    assert store.revoke("id0").entries == tuple(f"id{n}" for n in range(1000))


def test_nothing_is_revoked_by_nothing(store: Store) -> None:
    """An empty source would mean all; an unknown one is none."""
    store.put(entry())
    with pytest.raises(UsageError, match="say what to revoke"):
        store.revoke("")
    assert store.revoke("https://never.example/").entries == ()
    assert store.statistics().entries == 1


def test_a_percent_sign_is_no_wildcard(store: Store) -> None:
    """Addresses hold %, _ and other signs that mean something to a database."""
    for n, source in enumerate(["https://a.example/%20x", "https://a.example/120x"]):
        store.put(entry(n, sources=(source,)))
    assert store.revoke("https://a.example/%20").entries == ("id0",)
    assert store.revoke("https://a.example/_").entries == ()


# Leases


def test_one_holds_a_lease_and_the_others_see_who(store: Store) -> None:
    """When it is given up, the next holder's fence is higher."""
    held = store.lease("space", "l", "a", 1, 1, 60)
    assert (held.holder, held.namespace, held.like) == (Producer("a", 1, 1), "space", "l")
    assert held.until == pytest.approx(store.now() + 60, abs=5)
    assert store.lease("space", "l", "b", 2, 2, 60) == held
    assert store.statistics().leases == 1
    assert store.release(held)
    assert store.statistics().leases == 0
    again = store.lease("space", "l", "b", 2, 2, 60)
    assert again.holder == Producer("b", 2, 2)
    assert again.fence > held.fence


def test_a_holder_that_asks_again_has_a_fence_of_its_own(store: Store) -> None:
    """An attempt that was broken off, or a process that woke up late, gives nothing up and brings
    nothing of a later attempt's, although both are the same task of the same run."""
    first = store.lease("space", "l", "a", 1, 1, 60)
    second = store.lease("space", "l", "a", 1, 1, 60)
    assert (second.holder, second.fence > first.fence) == (first.holder, True)
    assert store.renew(first, 60) is None
    assert not store.release(first)
    assert store.lease("space", "l", "b", 2, 2, 60) == second
    assert store.statistics().leases == 1
    assert store.release(second)


def test_leases_on_other_things_are_free(store: Store) -> None:
    """Each likeness has a holder of its own."""
    assert store.lease("space", "l", "a", 1, 1, 60).holder.run_id == "a"
    assert store.lease("space", "m", "b", 1, 1, 60).holder.run_id == "b"


def test_a_holder_that_dies_is_taken_over_and_fenced_off(place: Place) -> None:
    """What it wants after its time does not count; the new holder keeps the lease."""
    store = place.another()
    dead = store.lease("space", "l", "a", 1, 1, 20)
    place.wait(25)
    taken = store.lease("space", "l", "b", 1, 2, 60)
    assert taken.holder.run_id == "b"
    assert taken.fence > dead.fence
    assert store.renew(dead, 60) is None
    assert not store.release(dead)
    assert store.lease("space", "l", "c", 1, 3, 60) == taken


def test_a_lease_lives_on_as_long_as_it_is_renewed(place: Place) -> None:
    """A slow holder that nobody has replaced may still renew."""
    store = place.another()
    lease = store.lease("space", "l", "a", 1, 1, 30)
    place.wait(20)
    renewed = store.renew(lease, 30)
    assert renewed is not None
    assert renewed.until > lease.until
    place.wait(20)
    assert store.lease("space", "l", "b", 1, 2, 60).holder.run_id == "a"
    place.wait(20)
    assert store.renew(renewed, 60) is not None
    assert store.lease("space", "l", "b", 1, 2, 60).holder.run_id == "a"


def test_fences_grow_even_when_leases_are_forgotten(place: Place) -> None:
    """Over releases, take-overs and `remove_expired`."""
    store = place.another()
    fences = []
    for n in range(20):
        lease = store.lease("space", "l", f"run{n}", n, 1, 10)
        fences.append(lease.fence)
        if n % 3 == 0:
            store.release(lease)
        else:
            place.wait(20)
        store.remove_expired()
    assert fences == sorted(set(fences))


# The door


def test_a_store_may_be_called_from_any_thread(store: Store) -> None:
    """One at a time, not always the same."""
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            store.put(entry(n), [float(n), 1.0])
            store.nearest("space", [1.0, 1.0], 3)
        except BaseException as error:
            failed.append(error)

    for n in range(5):
        thread = threading.Thread(target=work, args=(n,))
        thread.start()
        thread.join()
    assert not failed
    assert store.statistics().entries == 5


def test_a_closed_store_says_so_and_opens_again(shared: Place) -> None:
    """What it held is there; closing twice is no mistake."""
    store = shared.another()
    store.put(entry(), [1.0, 0.0])
    store.close()
    store.close()
    with pytest.raises(BankError, match="is closed"):
        store.find("space", "key1", "like1")
    store.open()
    store.open()
    assert _id(store.find("space", "key1", "like1")) == "id1"
    assert len(store.nearest("space", [1.0, 0.0], 1)) == 1


@pytest.mark.parametrize("url", ["", "bank.db", "sqlite://", "sqlite:///", "redis://u:pass@h/1"])
def test_another_address_is_a_mistake(url: str) -> None:
    """The error says what there is, and no password."""
    with pytest.raises(UsageError, match="a bank is at sqlite:///FILE or postgresql://") as told:
        open_store(url)
    assert "pass" not in str(told.value)


def test_a_wrong_postgres_address_keeps_its_password() -> None:
    """Not even the driver's text, which quotes it, is shown."""
    pytest.importorskip("psycopg")
    with pytest.raises(UsageError, match="none that Postgres knows") as told:
        open_store("postgresql://user:secret@host:port:5/db?what=1")
    assert "secret" not in str(told.value)
    assert told.value.__cause__ is None


def test_no_address_is_memory() -> None:
    """And it is gone with the store."""
    store = open_store(None)
    store.open()
    store.put(entry())
    store.close()
    store.open()
    assert store.statistics() == Statistics()
    store.close()


def _id(found: Entry | None) -> str | None:
    return None if found is None else found.id
