"""The index: what is found is nearest, what goes is worth least, and what is not a vector stays out."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from breakwater_gateway.cache.semantic import (
    Entry,
    Index,
    Lists,
    decode_entry,
    encode_entry,
    pack_half,
    unit,
    unpack_half,
)

D = 8
BAD = [
    np.array([1.0] * (D - 1)),
    np.array([1.0] * (D + 1)),
    np.array([np.nan] + [1.0] * (D - 1)),
    np.array([np.inf] + [1.0] * (D - 1)),
    np.zeros(D),
    np.ones((2, 4)),
]


def entry(id_: str, partition: str = "p", *, cost: int | None = 100, answer: str = "yes") -> Entry:
    return Entry(
        id=id_,
        tenant="t",
        partition=partition,
        model="m",
        text=f"question {id_}",
        digest=f"digest {id_}",
        vector=b"",
        answer=answer,
        answer_vector=b"",
        answer_id=1,
        cost_nano_usd=cost,
        answer_bytes=100,
        at=0.0,
        expires_at=1e12,
    )


def vector(seed: int, dimensions: int = D) -> np.ndarray:
    found = unit(np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32), None)
    assert found is not None
    return found


@pytest.mark.parametrize("raw", BAD, ids=str)
def test_what_is_not_a_vector_of_the_index_is_refused(raw: np.ndarray) -> None:
    assert unit(raw.astype(np.float32), D) is None
    assert unit(raw.astype("<f4").tobytes(), D) is None or raw.shape == (2, 4)


def test_bytes_that_are_no_floats_are_refused() -> None:
    assert unit(b"", None) is None
    assert unit(b"abc", None) is None
    assert unpack_half(b"abc") is None


def test_a_vector_is_made_a_unit_vector_and_survives_its_packing() -> None:
    found = unit(np.array([3.0, 4.0], np.float32), 2)
    assert found is not None
    assert found.tolist() == pytest.approx([0.6, 0.8])
    again = unpack_half(pack_half(found), 2)
    assert again is not None
    assert float(again @ found) == pytest.approx(1.0, abs=1e-3)


def test_an_entry_survives_its_packing() -> None:
    assert decode_entry(encode_entry(entry("a"))) == entry("a")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("arq"), st.integers(0, 40), st.sampled_from("xy"))),
    st.integers(100, 200),
)
@example([*(("a", seed, "x") for seed in range(9)), ("a", 0, "y")], 100)
def test_a_search_finds_what_comparing_with_all_would(
    steps: list[tuple[str, int, str]], query_seed: int
) -> None:
    index, kept = Index(10**9), dict[str, tuple[str, np.ndarray]]()
    for step, seed, partition in steps:
        id_ = str(seed)
        if step == "r":
            assert index.remove(id_) == (kept.pop(id_, None) is not None)
        else:
            index.add(entry(id_, partition), vector(seed))
            kept[id_] = (partition, vector(seed))
    query = vector(query_seed)
    for partition in "xy":
        found = index.search(partition, query)
        expected = sorted(
            (float(v @ query) for p, v in kept.values() if p == partition), reverse=True
        )
        # A place that is free may stand where one would that points away from the question: no
        # threshold lets either through.
        toward = [each.similarity for each in found.candidates if each.similarity > 1e-4]
        wanted = [each for each in expected[:8] if each > 1e-4]
        assert toward == pytest.approx(wanted, abs=1e-5)
        assert all(kept[each.id][0] == partition for each in found.entries)
        rows = index.begin(partition, query)()
        assert index.finish(partition, rows, query) == found
    assert len(index) == len(kept)


def test_an_entry_that_went_while_a_thread_searched_is_not_found_in_its_place() -> None:
    index = Index(10**9)
    index.add(entry("a"), vector(1))
    index.add(entry("b"), vector(2))
    rows = index.begin("p", vector(1))()
    index.remove("a")
    index.add(entry("c"), vector(3))
    found = index.finish("p", rows, vector(1))
    similar = {
        each.id: c.similarity for each, c in zip(found.entries, found.candidates, strict=True)
    }
    assert similar["c"] == pytest.approx(float(vector(3) @ vector(1)), abs=1e-5)


def test_bytes_stay_within_the_bound_and_what_is_worth_least_goes() -> None:
    index = Index(60_000)
    gone: list[str] = []
    for n in range(300):
        index.add(entry(f"dear{n}", cost=10_000_000) if n == 0 else entry(str(n)), vector(n))
        gone += [each.id for each in index.add(entry(f"x{n}"), vector(n))]
        index.used("dear0")
        assert index.bytes <= 60_000
    assert gone
    assert index.get("dear0") is not None
    for each in [each.id for each in index]:
        index.remove(each)
    assert index.bytes == 0
    assert not index.partitions()


def test_an_old_entry_that_was_dear_once_goes_in_the_end() -> None:
    index = Index(30_000)
    index.add(entry("old", cost=2_000), vector(0))
    for n in range(2_000):
        index.add(entry(str(n), cost=1_000), vector(n))
    assert index.get("old") is None


def test_answers_that_say_the_same_have_one_number() -> None:
    index = Index(10**9)
    first = entry("a", answer="Yes, it is.")
    first.answer_vector = pack_half(vector(1))
    index.add(first, vector(1))
    found = index.search("p", vector(1))
    assert index.answer_id(found, "yes it is", None) == 1
    assert index.answer_id(found, "No.", None) == 2
    assert index.answer_id(found, "It certainly is.", vector(1)) == 1
    assert index.answer_id(found, "It is 7.", vector(1)) == 3, "numbers differ"
    assert index.answer_id(found, "It certainly is.", vector(2)) == 4


def test_lists_find_nearly_what_comparing_with_all_does() -> None:
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, 32))
    rows = centres[rng.integers(0, 40, 4_000)] + 0.3 * rng.standard_normal((4_000, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    lists = Lists(rows)
    right = 0
    for query in rows[::40]:
        candidates = lists.candidates(query)
        assert len(candidates) < 3_000
        right += int((rows @ query).argmax()) in candidates.tolist()
    assert right >= 98
    lists.add(4_000, rows[7])
    assert 4_000 in lists.candidates(rows[7]).tolist()
