"""What the breakers of all scopes together say about a deployment."""

import pytest

from breakwater_gateway.config.model import BreakerPolicy
from breakwater_gateway.config.targets import Scopes
from breakwater_gateway.router.own_window import OwnWindows
from breakwater_gateway.router.standing import NOT_FOR_IT, USUAL, Standings
from breakwater_protocol.events import BreakerChanged, BreakerState, Evidence
from breakwater_protocol.views import BreakerBoard

NOW = 1_700_000_000.0
SCOPES = {"d": Scopes("@p/eu", ("d#key1", "d#key2"))}


def changed(
    target: str, state: BreakerState, *, epoch: int = 1, cause: str = "consecutive", ramp: float = 0
) -> BreakerChanged:
    until = NOW + 10.0 * epoch if state == "open" else 0.0
    ramp_until = NOW + ramp if ramp else 0.0
    return BreakerChanged(target, state, cause, Evidence(), until, epoch, "closed", NOW, ramp_until)


def standings(*changes: BreakerChanged) -> Standings:
    board = BreakerBoard()
    for change in changes:
        board.fold(change)
    found = Standings(board, OwnWindows())
    found.retain(SCOPES)
    return found


def test_a_deployment_that_nothing_was_said_about_is_closed() -> None:
    assert standings().of("d", NOW) == USUAL
    assert standings().of("unknown", NOW) == USUAL


def test_it_is_as_open_as_the_worst_of_its_scopes() -> None:
    for target in ("d", "@p/eu"):
        found = standings(changed(target, "open")).of("d", NOW)
        assert (found.state, found.until, found.probe_of) == ("open", NOW + 10.0, target)
    both = standings(changed("d", "half_open"), changed("@p/eu", "open", epoch=3)).of("d", NOW)
    assert (both.state, both.probe_of, both.until) == ("open", "@p/eu", NOW + 30.0)
    assert (both.epoch, both.region_epoch) == (NOT_FOR_IT, 3)


def test_keys_that_are_out_are_left_out_of_the_pool() -> None:
    found = standings(changed("d#key1", "open", epoch=4)).of("d", NOW)
    assert (found.state, found.keys, found.key_epochs) == ("closed", (1,), (4, 0))


def test_without_any_key_it_is_open_until_the_first_comes_back() -> None:
    found = standings(changed("d#key1", "open", epoch=2), changed("d#key2", "open")).of("d", NOW)
    assert (found.state, found.until, found.early) == ("open", NOW + 10.0, False)


def test_a_half_open_key_is_probed_beside_the_sound_ones_or_alone() -> None:
    found = standings(changed("d#key1", "half_open", epoch=4)).of("d", NOW)
    assert (found.state, found.keys, found.key_probes) == ("closed", (1,), (0,))
    alone = standings(changed("d#key1", "half_open", epoch=4), changed("d#key2", "open")).of(
        "d", NOW
    )
    assert (alone.state, alone.keys) == ("half_open", (0,))
    assert (alone.probe_of, alone.probe_epoch) == ("d#key1", 4)


def test_a_probe_speaks_for_the_widest_scope_alone() -> None:
    found = standings(changed("d", "half_open", epoch=3), changed("@p/eu", "half_open", epoch=5))
    standing = found.of("d", NOW)
    assert (standing.probe_of, standing.probe_epoch) == ("@p/eu", 5)
    assert (standing.epoch, standing.region_epoch) == (NOT_FOR_IT, 5)


def test_the_smaller_share_of_two_ramps_counts() -> None:
    found = standings(changed("d", "closed", ramp=15.0), changed("@p/eu", "closed", ramp=30.0))
    assert [found.of("d", NOW + s).share for s in (0, 6, 11, 16, 21, 30)] == [
        *(0.1, 0.1, 0.25, 0.25, 0.5, 1.0)
    ]


@pytest.mark.parametrize(
    ("cause", "early"),
    [
        ("consecutive", True),
        ("several_deployments", True),
        ("ramp_failed", True),
        ("probe_failed", False),
        ("operator", False),
    ],
)
def test_what_may_be_probed_before_its_time(cause: str, early: bool) -> None:
    assert standings(changed("d", "open", cause=cause)).of("d", NOW).early is early


def test_while_health_is_silent_its_own_failures_come_first() -> None:
    found = standings(changed("@p/eu", "closed"))
    own = found._own
    for _ in range(5):
        own.failed("d", BreakerPolicy(), NOW, 0.5)
    assert found.of("d", NOW).state == "closed"
    found.silent = True
    assert (found.of("d", NOW).state, found.of("d", NOW).until) == ("open", NOW + 3.75)
    assert found.of("d", NOW + 3.75).state == "closed"
    own.failed("d", BreakerPolicy(), NOW + 4.0, 0.5)
    assert found.of("d", NOW + 4.0).until == NOW + 4.0 + 7.5


def test_while_health_is_silent_the_last_shared_state_holds_until_its_time() -> None:
    found = standings(changed("d", "open"))
    found.silent = True
    assert found.of("d", NOW + 14.9).state == "open"
    assert found.of("d", NOW + 15.1).state == "closed"
    half = standings(changed("d", "half_open"))
    half.silent = True
    assert half.of("d", NOW).state == "closed"


def test_a_success_ends_the_row_and_in_time_the_memory() -> None:
    own = OwnWindows()
    for at in range(4):
        own.failed("d", BreakerPolicy(), NOW + at, 0.5)
    own.succeeded("d", NOW + 4)
    own.failed("d", BreakerPolicy(), NOW + 5, 0.5)
    assert not own.open_until("d", NOW + 5)
    own.succeeded("d", NOW + 100)
    assert "d" not in own
