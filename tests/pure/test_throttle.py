"""The throttle of a pool of keys: each key for itself, one queue before them all."""

from hypothesis import given, settings
from hypothesis import strategies as st

from breakwater_gateway.router.release import PATIENCE_S, QUIET_S, Release
from breakwater_gateway.router.throttle import Throttle

ALL = (0, 1, 2)


def paused(*until: float | None, now: float = 0.0) -> Throttle:
    """A pool whose keys were refused with these waits; None: was not."""
    throttle = Throttle(len(until))
    for key, wait_s in enumerate(until):
        if wait_s is not None:
            throttle.key(key).refused("x", wait_s, now)
    return throttle


def test_a_refusal_pauses_its_key_and_no_other() -> None:
    throttle = paused(None, 5.0, None)
    assert throttle.usable(ALL, 1.0) == (0, 2)
    assert not throttle.admits(1.0)


def test_only_with_every_key_paused_there_is_none_to_use_until_the_first_is_free() -> None:
    throttle = paused(9.0, 5.0, 7.0)
    assert throttle.usable(ALL, 1.0) == ()
    assert throttle.until(ALL, 1.0) == 5.0
    assert throttle.until((0, 2), 1.0) == 7.0


def test_who_waits_goes_first_with_the_key_that_is_free_first() -> None:
    throttle = paused(9.0, 5.0, 7.0)
    for request in "abc":
        throttle.join(request, 1)
    assert throttle.wake_at(ALL, 1.0) == 5.0
    assert throttle.due(ALL, 4.9) is None
    assert throttle.due(ALL, 5.0) == ("a", 1)
    # That one is the probe of its key: the others wait for how it fares, or for the next key.
    assert throttle.due(ALL, 5.0) is None
    throttle.sent(1, "a", 5.0, turn=True)
    throttle.key(1).refused("a", 60.0, 5.1)
    assert throttle.due(ALL, 7.0) == ("b", 2)
    throttle.leave("c")
    assert throttle.wake_at(ALL, 7.0) is None


def test_keys_that_breakers_keep_out_let_nobody_go() -> None:
    throttle = paused(9.0, 5.0)
    throttle.join("a", 1)
    assert throttle.due((0,), 6.0) is None
    assert throttle.wake_at((0,), 6.0) == 9.0


def test_a_key_whose_pause_is_over_is_tried_by_one_who_passes_by() -> None:
    throttle = paused(None, 5.0)
    assert throttle.usable((0, 1), 4.0) == (0,)
    assert throttle.usable((0, 1), 5.0) == (0, 1)
    throttle.sent(1, "a", 5.0, turn=False)
    assert throttle.key(1).phase == "probing"
    assert throttle.usable((0, 1), 5.0) == (0,)
    throttle.key(1).answered("a", 5.1)
    assert throttle.usable((0, 1), 5.1) == (0, 1)
    assert throttle.usable((0, 1), 5.1 + QUIET_S) == (0, 1)
    assert throttle.admits(5.1 + QUIET_S)


def test_who_passes_by_leaves_turns_to_who_waits() -> None:
    throttle = paused(5.0, 5.0)
    throttle.join("a", 1)
    assert throttle.usable((0, 1), 6.0) == ()


def test_a_pause_of_the_whole_target_is_one_of_each_key() -> None:
    throttle = Throttle(2)
    throttle.pause(None, 3.0, 0.0)
    assert throttle.usable((0, 1), 1.0) == ()
    throttle.pause(1, 9.0, 1.0)
    assert throttle.until((0, 1), 2.0) == 3.0


def test_a_changed_pool_keeps_what_is_known_of_keys_that_stay() -> None:
    throttle = paused(5.0, None)
    throttle.join("a", 1)
    throttle.resize(3)
    assert throttle.usable(ALL, 1.0) == (1, 2)
    throttle.resize(1)
    assert throttle.usable((0,), 1.0) == ()
    assert throttle.due((0,), 5.0) == ("a", 0)


STEP = st.tuples(
    st.sampled_from(["sent", "answered", "refused", "pause", "join", "leave", "due", "look"]),
    st.integers(0, 5),
    st.floats(0, 3) | st.none(),
    st.floats(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_one_key_is_its_release_and_nothing_else(
    steps: list[tuple[str, int, float | None, float]],
) -> None:
    one, throttle = Release(), Throttle(1)
    now = 0.0
    for what, number, wait_s, later in steps:
        now += later
        request = f"r{number}"
        match what:
            case "sent":
                one.sent(request, now)
                throttle.sent(0, request, now, turn=False)
            case "answered":
                one.answered(request, now)
                throttle.key(0).answered(request, now)
            case "refused":
                one.refused(request, wait_s, now)
                throttle.key(0).refused(request, wait_s, now)
            case "pause":
                one.pause(wait_s, now)
                throttle.pause(0, wait_s, now)
            case "join":
                one.join(request, 1)
                throttle.join(request, 1)
            case "leave":
                one.leave(request)
                throttle.leave(request)
            case "due":
                request_due = one.due(now)
                found = throttle.due((0,), now)
                assert (None if found is None else found[0]) == request_due
            case _:
                assert throttle.admits(now) == one.admits(now)
        assert one.until(now) == throttle.until((0,), now)
        assert one.wake_at(now) == throttle.wake_at((0,), now)
        assert one.waiting == throttle.waiting


@settings(max_examples=300, deadline=None)
@given(
    keys=st.integers(2, 4),
    steps=st.lists(st.tuples(STEP, st.integers(0, 3)), max_size=60),
)
def test_nobody_who_waits_is_forgotten_or_let_go_before_a_key_is_free(
    keys: int, steps: list[tuple[tuple[str, int, float | None, float], int]]
) -> None:
    throttle, now, names = Throttle(keys), 0.0, 0
    among = tuple(range(keys))
    waiting: list[str] = []
    for (what, number, wait_s, later), place in steps:
        now, key = now + later, place % keys
        if what == "join":
            names += 1
            throttle.join(f"w{names}", 1)
            waiting.append(f"w{names}")
        elif what in {"refused", "pause"}:
            throttle.pause(key, wait_s, now)
            if wait_s and now + wait_s > now:
                assert not throttle.key(key).is_due(now)
        elif what == "sent" and throttle.usable(among, now):
            throttle.sent(throttle.usable(among, now)[0], f"s{number}", now, turn=False)
        elif what == "answered":
            throttle.key(key).answered(f"s{number}", now)
        elif what == "due":
            free = [k for k in among if throttle.key(k).is_due(now)]
            found = throttle.due(among, now)
            if found is not None:
                assert found[1] in free
                assert found[0] == waiting.pop(0)
        assert throttle.waiting == len(waiting)
    for _ in range(400):
        at = throttle.wake_at(among, now)
        if at is None:
            break
        now = max(now, at) + PATIENCE_S
        if throttle.due(among, now) is not None:
            waiting.pop(0)
    assert not waiting
