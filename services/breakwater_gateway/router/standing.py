"""Standing: what the breakers of all its scopes together say about a deployment.

A call to a deployment passes three of them: its provider-region's, its own and its key's. It is as open as
the worst of them; keys that are out are left out of its pool, and with none left it is open too. A probe
speaks for one scope only, the widest that is half-open, and says nothing about another one in trouble.

While health is silent this router's own experience comes first: what it saw fail itself is open, whatever
was published last. Nothing here has a clock.
"""

from typing import Final

from msgspec import Struct

from breakwater_gateway.config.targets import NO_SCOPES, Scopes
from breakwater_gateway.router.own_window import OwnWindows
from breakwater_protocol.events import BreakerState
from breakwater_protocol.views import BreakerBoard

NOT_FOR_IT: Final = -1
"""The epoch of a call that may not speak for a scope: no breaker ever has it."""

EARLY: Final = frozenset(
    {"failure_rate", "consecutive", "slow_rate", "several_deployments", "ramp_failed"}
)
"""Openings that a model without any other choice may probe before their time. Not those of an operator,
and not again after a probe has failed: one call for each opening is all that a dead provider gets."""


class Standing(Struct, frozen=True):
    state: BreakerState = "closed"
    until: float = 0.0
    """Unix time at which an open one may be probed, as far as it can be told."""
    share: float = 1.0
    """Of the calls that may go there; less for a while after an outage."""
    epoch: int = 0
    """Of the deployment's own breaker, as a permit taken now carries it."""
    region_epoch: int = 0
    keys: tuple[int, ...] = ()
    """Those that may be used; empty: all of its pool."""
    key_epochs: tuple[int, ...] = ()
    """By index into the pool; empty: all 0."""
    probe_of: str = ""
    """The scope that a probe would speak for, where the state is not closed."""
    probe_epoch: int = 0
    key_probes: tuple[int, ...] = ()
    """Half-open keys of a deployment that is closed otherwise."""
    early: bool = False
    """Open, and may be probed all the same where a model has nothing else."""


USUAL: Final = Standing()
"""Of a deployment that nothing was ever said about."""


class Standings:
    """Folded from the board, for each deployment, as of one moment."""

    def __init__(self, board: BreakerBoard, own: OwnWindows) -> None:
        self._board = board
        self._own = own
        self.scopes: dict[str, Scopes] = {}
        self._last: dict[str, Standing] = {}
        self.silent = False
        """Nothing was heard of health for long: what is published may be stale."""

    def of(self, deployment: str, now_wall: float) -> Standing:
        scopes = self.scopes.get(deployment, NO_SCOPES)
        if self.silent and (until := self._own.open_until(deployment, now_wall)):
            return Standing("open", until)
        if not self._board:
            return USUAL
        board = self._board
        states = {t: self._shared(t, now_wall) for t in (scopes.region, deployment) if t}
        sound = [t for t, state in states.items() if state == "closed"]
        epoch = board.epoch(deployment) if deployment in sound else NOT_FOR_IT
        region_epoch = board.epoch(scopes.region) if scopes.region in sound else NOT_FOR_IT
        if not scopes.region:
            region_epoch = 0
        key_states = [self._shared(key, now_wall) for key in scopes.keys]
        usable = tuple(at for at, state in enumerate(key_states) if state == "closed")
        half = tuple(at for at, state in enumerate(key_states) if state == "half_open")
        key_epochs = tuple(board.epoch(key) for key in scopes.keys)
        troubled = next((t for t, state in states.items() if state == "open"), "")
        early = False
        if troubled:
            open_ = [t for t, state in states.items() if state == "open"]
            early = bool(usable or not key_states) and all(
                (last := board.last(t)) is not None and last.cause in EARLY for t in open_
            )
        elif key_states and not usable and not half:
            return Standing("open", min(board.until(key) for key in scopes.keys))
        else:
            troubled = next((t for t, state in states.items() if state == "half_open"), "")
        if troubled:
            probed = board.epoch(troubled)
            return Standing(
                state=states[troubled],
                until=max(board.until(t) for t in states),
                epoch=probed if troubled == deployment else epoch,
                region_epoch=probed if troubled == scopes.region else region_epoch,
                keys=usable or half,
                key_epochs=key_epochs,
                probe_of=troubled,
                probe_epoch=probed,
                early=early,
            )
        if key_states and not usable:
            return Standing(
                state="half_open",
                epoch=epoch,
                region_epoch=region_epoch,
                keys=half[:1],
                key_epochs=key_epochs,
                probe_of=scopes.keys[half[0]],
                probe_epoch=key_epochs[half[0]],
            )
        share = board.share(deployment, now_wall)
        if scopes.region:
            share = min(share, board.share(scopes.region, now_wall))
        return Standing(
            share=share,
            epoch=epoch,
            region_epoch=region_epoch,
            keys=usable if len(usable) < len(key_states) else (),
            key_epochs=key_epochs if any(key_epochs) else (),
            key_probes=half,
        )

    def _shared(self, target: str, now_wall: float) -> BreakerState:
        """What was published last. Half-open with nobody there to judge a probe, it is for this router's own
        windows to find out."""
        state = self._board.state(target, now_wall)
        return "closed" if self.silent and state == "half_open" else state

    # The view that `filter_targets` takes.

    def state(self, target: str, now_wall: float) -> BreakerState:
        found = self._last[target] = self.of(target, now_wall)
        return found.state

    def until(self, target: str) -> float:
        """As of the last time that `state` was asked."""
        return self.last(target).until

    def last(self, target: str) -> Standing:
        return self._last.get(target, USUAL)

    def retain(self, scopes: dict[str, Scopes]) -> None:
        """The configuration changed."""
        self.scopes = scopes
        self._last.clear()
