"""What is remembered of late: in number and in bytes, whatever is put in."""

from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.cache.recent import OVERHEAD, Recent

STEPS = st.lists(
    st.tuples(st.sampled_from(("put", "use", "pop")), st.integers(0, 9), st.integers(0, 3_000))
)


@given(steps=STEPS)
def test_the_bounds_hold_and_the_bytes_are_those_of_what_is_there(
    steps: list[tuple[str, int, int]],
) -> None:
    recent: Recent[int, bytes] = Recent(5, 6_000, lambda _, value: len(value))
    for what, key, size in steps:
        match what:
            case "put":
                recent.put(key, b"x" * size)
                assert recent.get(key) is not None, "the newest stays"
            case "use":
                recent.use(key)
            case _:
                recent.pop(key)
                assert key not in recent
        assert len(recent) <= 5
        assert recent.bytes <= 6_000
        there = [value for key in range(10) if (value := recent.get(key)) is not None]
        assert recent.bytes == sum(OVERHEAD + len(value) for value in there)


def test_what_was_used_last_goes_last() -> None:
    recent: Recent[str, bytes] = Recent(2, 100_000, lambda _, value: len(value))
    recent.put("a", b"")
    recent.put("b", b"")
    recent.use("a")
    recent.put("c", b"")
    assert "a" in recent
    assert "b" not in recent
