"""The state pool: slots, least recently used first out, and every lane back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from memory.errors import StateMismatchError
from memory.lane_state import Column, Columns
from memory.state_pool import LaneRecord, StatePool

SHAPE = (2, 1, 3, 3)
LANE_BYTES = 4 * 2 * 3 * 3


def make(slots: int, *, capacity: int = 1, fetch: object = None, **others: object) -> StatePool:
    beside = {"counts": Columns({"n": Column("int64", fill=-1)})}
    return StatePool(2, 1, 3, beside=beside, capacity=capacity, max_bytes=slots * LANE_BYTES, fetch=fetch, **others)  # type: ignore[arg-type]


def fill(pool: StatePool, key: str, seed: int) -> bytes:
    """Put seeded numbers into a lane, a NaN and a negative zero among them; return the state's bytes."""
    slot = int(pool.acquire([key])[0])
    state = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    state[0, 0, 0, 0], state[0, 0, 0, 1] = float("nan"), -0.0
    pool.states[slot] = state
    pool.beside["counts"]["n"][slot] = seed  # type: ignore[index]
    return state.numpy().tobytes()


def content(pool: StatePool, key: str) -> tuple[bytes, int]:
    slot = int(pool.acquire([key])[0])
    return pool.states[slot].numpy().tobytes(), int(pool.beside["counts"]["n"][slot])  # type: ignore[index]


class Store:
    """A dict behind `fetch`, which remembers what it was asked for."""

    def __init__(self) -> None:
        self.rows: dict[str, LaneRecord] = {}
        self.asked: list[list[str]] = []

    def fetch(self, keys: Sequence[str]) -> Mapping[str, LaneRecord]:
        self.asked.append(list(keys))
        return {key: self.rows[key] for key in keys if key in self.rows}

    def commit(self, pool: StatePool) -> list[str]:
        written = dict(pool.records())
        self.rows.update(written)
        pool.committed()
        return list(written)


def test_a_new_lane_is_zero_and_keeps_its_slot_while_it_is_resident() -> None:
    pool = make(8)
    slots = pool.acquire(["ann", "bob"])
    assert not pool.states[slots].any()
    fill(pool, "bob", 1)
    assert pool.acquire(["bob", "ann"]).tolist() == pool.acquire(["bob", "ann"]).tolist()
    assert pool.acquire(["bob"])[0] != pool.acquire(["ann"])[0]
    assert content(pool, "ann") == (bytes(LANE_BYTES), -1)


def test_it_grows_by_doubling_up_to_its_bound_and_moves_nothing() -> None:
    pool = make(11)
    capacities, expected = [], {}
    for number in range(11):
        expected[f"s{number}"] = (fill(pool, f"s{number}", number), number)
        capacities.append(pool.capacity)
    assert capacities == [1, 2, 4, 4, 8, 8, 8, 8, 11, 11, 11]
    assert pool.bytes_reserved == 11 * LANE_BYTES == pool.bytes_used
    assert pool.spilled == 0
    assert {key: content(pool, key) for key in expected} == expected


def test_one_call_may_need_more_slots_than_one_doubling_gives() -> None:
    pool = make(100)
    assert sorted(pool.acquire([f"s{n}" for n in range(37)]).tolist()) == list(range(37))
    assert pool.capacity == 64


def test_the_least_recently_used_lane_goes_first_and_using_one_again_saves_it() -> None:
    pool = make(3)
    for key in ("ann", "bob", "cid"):
        fill(pool, key, 1)
    pool.acquire(["ann"])
    pool.acquire(["dot"])  # bob is the one unused for longest
    assert list(pool.slots()) == ["cid", "ann", "dot"]
    pool.acquire(["ann", "eve"])  # what this call names is never the one to go
    assert list(pool.slots()) == ["dot", "ann", "eve"]
    assert (pool.resident, pool.spilled) == (3, 2)


def test_a_spilled_lane_comes_back_bit_for_bit_and_its_slot_is_clean_for_the_next() -> None:
    pool = make(1)
    ann = fill(pool, "ann", 5)
    assert content(pool, "bob") == (bytes(LANE_BYTES), -1), "bob found what ann left in the slot"
    assert content(pool, "ann") == (ann, 5)
    assert pool.take_moves() == {"out": 2, "in": 1}
    assert pool.take_moves() == {"out": 0, "in": 0}


def test_a_released_lane_is_forgotten_and_its_slot_used_again_from_zero() -> None:
    pool = make(2)
    fill(pool, "ann", 1)
    slot = pool.acquire(["ann"])[0]
    pool.release("ann")
    assert "ann" not in pool
    assert dict(pool.records()) == {}
    assert pool.acquire(["bob"])[0] == slot
    assert content(pool, "bob") == (bytes(LANE_BYTES), -1)
    pool.release("nobody")


def test_releasing_a_spilled_lane_drops_its_record() -> None:
    pool = make(1)
    fill(pool, "ann", 1)
    pool.acquire(["bob"])
    pool.release("ann")
    assert (pool.spilled, "ann" in pool) == (0, False)
    assert content(pool, "ann") == (bytes(LANE_BYTES), -1)


def test_only_changed_lanes_are_committed_in_the_order_in_which_they_changed() -> None:
    store = Store()
    pool = make(2, fetch=store.fetch)
    for number, key in enumerate(("cid", "ann", "bob")):
        fill(pool, key, number)
    assert [key for key, _ in pool.records()] == ["ann", "bob", "cid"]  # those in host memory come last
    assert sorted(store.commit(pool)) == ["ann", "bob", "cid"]
    assert (pool.changed, pool.spilled) == (0, 0)
    pool.acquire(["bob"])
    assert store.commit(pool) == ["bob"]
    assert store.commit(pool) == []


def test_what_is_in_the_store_unchanged_is_not_kept_in_host_memory_too() -> None:
    store = Store()
    pool = make(1, fetch=store.fetch)
    ann = fill(pool, "ann", 3)
    store.commit(pool)
    store.asked.clear()
    pool.acquire(["bob"])
    assert (pool.spilled, store.asked) == (0, [["bob"]])
    assert content(pool, "ann") == (ann, 3)
    assert store.asked == [["bob"], ["ann"]]


def test_without_a_store_a_commit_keeps_what_is_spilled() -> None:
    pool = make(1)
    ann = fill(pool, "ann", 3)
    pool.acquire(["bob"])
    pool.committed()
    assert content(pool, "ann") == (ann, 3)
    pool.committed()
    pool.acquire(["bob"])
    assert content(pool, "ann") == (ann, 3)


def test_it_asks_for_a_commit_when_too_many_changed_lanes_wait_in_host_memory() -> None:
    store = Store()
    pool = make(1, fetch=store.fetch, max_spilled=2)
    for number in range(3):
        fill(pool, f"s{number}", number)
    assert not pool.wants_commit
    fill(pool, "s3", 3)
    assert pool.wants_commit
    store.commit(pool)
    assert not pool.wants_commit


def test_a_record_is_a_copy() -> None:
    pool = make(2)
    ann = fill(pool, "ann", 1)
    record = pool.record("ann")
    pool.states[pool.acquire(["ann"])[0]] = 7.0
    assert record.state == ann
    assert pool.record("ann").state != ann
    with pytest.raises(KeyError):
        pool.record("nobody")


def test_many_lanes_are_exported_in_pieces_and_in_order() -> None:
    pool = StatePool(1, 1, 1, capacity=3000)
    keys = [f"s{number}" for number in range(2500)]
    pool.states[pool.acquire(keys), 0, 0, 0, 0] = torch.arange(2500.0)
    assert [(key, np.frombuffer(record.state, np.float32)[0]) for key, record in pool.records()] == [
        (key, number) for number, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            LaneRecord("float32[2, 1, 4, 4]", bytes(128), {}),
            r"is float32\[2, 1, 4, 4\].*this run uses float32\[2, 1, 3",
        ),
        (LaneRecord("bfloat16[2, 1, 3, 3]", bytes(36), {}), r"bfloat16\[2, 1, 3, 3\]"),
        (LaneRecord("float32[2, 1, 3, 3]", bytes(68), {}), "68 bytes"),
        (LaneRecord("float32[2, 1, 3, 3]", bytes(72), {"counts": b"short"}), "beside the state of 'ann'.*got 5"),
    ],
)
def test_a_record_that_does_not_fit_is_an_error_and_never_a_silent_zero(record: LaneRecord, said: str) -> None:
    store = Store()
    store.rows["ann"] = record
    pool = make(2, fetch=store.fetch)
    bob, cid = fill(pool, "bob", 1), fill(pool, "cid", 2)
    for _ in range(3):  # a slot lost each time would show
        with pytest.raises(StateMismatchError, match=said):
            pool.acquire(["ann"])
    assert "ann" not in pool
    assert content(pool, "bob") == (bob, 1)
    assert content(pool, "cid") == (cid, 2)
    assert content(pool, "dot") == (bytes(LANE_BYTES), -1)


def test_a_component_that_a_record_does_not_know_starts_fresh() -> None:
    store = Store()
    store.rows["ann"] = LaneRecord("float32[2, 1, 3, 3]", bytes(72), {"another": b"..."})
    assert content(make(1, fetch=store.fetch), "ann") == (bytes(LANE_BYTES), -1)


def test_a_store_that_fails_loses_no_lane() -> None:
    def fail(keys: Sequence[str]) -> Mapping[str, LaneRecord]:
        if "cid" in keys:
            raise OSError("gone")
        return {}

    pool = make(1, fetch=fail)
    ann = fill(pool, "ann", 1)
    with pytest.raises(OSError, match="gone"):
        pool.acquire(["cid"])
    assert content(pool, "ann") == (ann, 1)


def test_arguments_that_cannot_be() -> None:
    pool = make(2)
    with pytest.raises(ValueError, match="3 lanes at once do not fit a pool of 2 slots"):
        pool.acquire(["a", "b", "c"])
    with pytest.raises(ValueError, match="all different"):
        pool.acquire(["a", "a"])
    assert pool.resident == 0
    with pytest.raises(ValueError, match="does not hold one state of 72 bytes"):
        make(0)
    assert pool.acquire([]).tolist() == []


KEYS = st.sampled_from([f"s{number}" for number in range(9)])


class PoolMachine(RuleBasedStateMachine):
    """Any order of use, release, commit, crash and restart, against a dict of what each lane should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.expected: dict[str, tuple[bytes, int]] = {}
        self.committed: dict[str, tuple[bytes, int]] = {}
        self.used: dict[str, int] = {}
        self.turn = self.seed = 0

    @initialize(slots=st.integers(4, 7), with_store=st.booleans())
    def begin(self, slots: int, with_store: bool) -> None:
        self.slots, self.with_store = slots, with_store
        self.pool = self.start()

    def start(self) -> StatePool:
        return make(self.slots, fetch=self.store.fetch if self.with_store else None)

    @rule(keys=st.lists(KEYS, min_size=1, max_size=4, unique=True), write=st.booleans())
    def use(self, keys: list[str], write: bool) -> None:
        slots = self.pool.acquire(keys)
        self.turn += 1
        assert len(set(slots.tolist())) == len(keys)
        counts = self.pool.beside["counts"]
        for key, slot in zip(keys, slots.tolist(), strict=True):
            held = self.pool.states[slot].numpy().tobytes(), int(counts["n"][slot])  # type: ignore[index]
            assert held == self.expected.get(key, (bytes(LANE_BYTES), -1)), key
            if write:
                self.seed += 1
                self.pool.states[slot] = float(self.seed)
                counts["n"][slot] = self.seed  # type: ignore[index]
                held = self.pool.states[slot].numpy().tobytes(), self.seed
            self.expected[key] = held
            self.used[key] = self.turn

    @rule(key=KEYS)
    def release(self, key: str) -> None:
        self.pool.release(key)
        self.used.pop(key, None)
        self.expected.pop(key, None)
        if key in self.committed:  # the store is the caller's to clear: the lane is what it was there
            self.expected[key] = self.committed[key]

    @rule()
    def commit(self) -> None:
        if self.with_store:
            self.store.commit(self.pool)
            self.committed = dict(self.expected)
        else:
            self.pool.committed()

    @rule()
    def crash(self) -> None:
        """Start again from what is committed."""
        self.pool, self.expected, self.used = self.start(), dict(self.committed), {}

    @invariant()
    def the_most_recently_used_are_resident(self) -> None:
        if hasattr(self, "pool"):
            resident = self.pool.slots()
            turns = [self.used[key] for key in resident]
            assert turns == sorted(turns)
            assert max((turn for key, turn in self.used.items() if key not in resident), default=0) <= min(
                turns, default=self.turn
            )
            assert len(resident) == self.pool.resident == len(set(resident.values()))
            assert self.pool.capacity <= self.slots


TestAnyOrder = PoolMachine.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)
