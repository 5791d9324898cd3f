"""Home: which router knows who leads a question, and what it knows. Pure; time comes in as `now`.

Every router finds the same home for a key among the routers that it has heard of lately (highest random
weight), so that no stored lease and no election is needed. Where two see different routers, a call may be
made twice; no answer is ever wrong for it.
"""

import hashlib
from typing import Final

ALIVE_S: Final = 1.6
"""Three heartbeats missed: another takes over."""
CLAIMS_MAX: Final = 65_536


class Home:
    __slots__ = ("_claims", "_leaving", "_peers", "own")

    def __init__(self, own: str) -> None:
        self.own = own
        self._peers: dict[str, float] = {}
        self._leaving: dict[str, float] = {}
        """Those that finish what they have in hand, and are home to nothing any more."""
        self._claims: dict[str, tuple[str, float]] = {}

    def heard(self, router: str, now: float, *, draining: bool = False) -> None:
        if router == self.own:
            return
        if draining:
            self._peers.pop(router, None)
            self._leaving = {r: at for r, at in self._leaving.items() if now - at <= ALIVE_S}
            self._leaving[router] = now
        else:
            self._peers[router] = now

    def alone(self, now: float) -> bool:
        if not self._peers:
            return True
        for router in [r for r, at in self._peers.items() if now - at > ALIVE_S]:
            del self._peers[router]
        return not self._peers

    def is_alive(self, router: str, now: float) -> bool:
        if router == self.own:
            return True
        at = self._peers.get(router)
        if at is None:
            at = self._leaving.get(router)
        return at is not None and now - at <= ALIVE_S

    def of(self, key: str, now: float) -> str:
        """The router that is home to the key."""
        if self.alone(now):
            return self.own
        return max((self.own, *self._peers), key=lambda router: _weight(router, key))

    def claim(self, key: str, router: str, left_s: float, now: float, *, lost: str = "") -> str:
        """Who leads the key: the router that asks, unless another one does. `lost` leads no longer."""
        known = self._claims.get(key)
        holds = known is not None and known[1] > now and known[0] != lost
        if known is not None and holds and self.is_alive(known[0], now):
            return known[0]
        if len(self._claims) >= CLAIMS_MAX:
            self._claims = {k: c for k, c in self._claims.items() if c[1] > now}
            if len(self._claims) >= CLAIMS_MAX:
                self._claims.clear()
        self._claims[key] = (router, now + left_s)
        return router

    def landed(self, key: str, router: str) -> None:
        known = self._claims.get(key)
        if known is not None and known[0] == router:
            del self._claims[key]


def _weight(router: str, key: str) -> bytes:
    return hashlib.blake2b(f"{router} {key}".encode(), digest_size=8).digest()
