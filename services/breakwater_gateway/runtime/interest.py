"""Interest: which subscriptions a subject reaches. NATS's rules, in memory.

`*` stands for one token and `>` for one or more at the end. Every plain subscription gets a message;
of a queue group, whatever patterns its members chose, one member does.
"""

from collections.abc import Callable, Iterator
from typing import Final

from breakwater_gateway.runtime.bus import Handler, check_subject

ROUTES_MAX: Final = 65_536
"""Subjects whose route is remembered, at most: each tenant has some, and a route that is looked for anew costs 5 µs."""


class Member:
    """One subscription: a pattern, a queue group or none, and what to call."""

    __slots__ = ("handler", "pattern", "queue", "tokens", "wild")

    def __init__(self, pattern: str, queue: str, handler: Handler) -> None:
        self.pattern = pattern
        self.queue = queue
        self.handler = handler
        self.tokens = tuple(pattern.split("."))
        self.wild = "*" in pattern or ">" in pattern

    def matches(self, tokens: list[str]) -> bool:
        own = self.tokens
        if own[-1] == ">":
            if len(tokens) < len(own):
                return False
            own = own[:-1]
        elif len(tokens) != len(own):
            return False
        return all(mine in ("*", theirs) for mine, theirs in zip(own, tokens, strict=False))


class Group:
    """The members of a queue group that one subject reaches, and whose turn it is."""

    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.turn = -1

    def next(self) -> Member:
        """Round robin."""
        self.turn = (self.turn + 1) % len(self.members)
        return self.members[self.turn]


class Route:
    """Whom a subject reaches."""

    __slots__ = ("groups", "plain")

    def __init__(self, plain: tuple[Member, ...], groups: tuple[Group, ...]) -> None:
        self.plain = plain
        self.groups = groups

    def pick(self, choose: Callable[[Group], Member] = Group.next) -> Iterator[Member]:
        yield from self.plain
        for group in self.groups:
            yield choose(group)


class Interest:
    """A registry of subscriptions. A lookup that was made before is one dict access."""

    __slots__ = ("_exact", "_routes", "_wild")

    def __init__(self) -> None:
        self._exact: dict[str, list[Member]] = {}
        self._wild: list[Member] = []
        self._routes: dict[str, Route | None] = {}

    def add(self, pattern: str, queue: str, handler: Handler) -> Member:
        member = Member(pattern, queue, handler)
        if member.wild:
            self._wild.append(member)
        else:
            self._exact.setdefault(pattern, []).append(member)
        self._forget()
        return member

    def remove(self, member: Member) -> None:
        """Safe to call again."""
        if member.wild:
            if member in self._wild:
                self._wild.remove(member)
        elif member in self._exact.get(member.pattern, ()):
            self._exact[member.pattern].remove(member)
            if not self._exact[member.pattern]:
                del self._exact[member.pattern]
        self._forget()

    def route(self, subject: str) -> Route | None:
        """None: nobody. Raises `BusError` on what is no subject to publish to."""
        try:
            return self._routes[subject]
        except KeyError:
            return self._resolve(subject)

    def _resolve(self, subject: str) -> Route | None:
        check_subject(subject)
        tokens = subject.split(".")
        found = [*self._exact.get(subject, ()), *(m for m in self._wild if m.matches(tokens))]
        route = None
        if found:
            groups: dict[str, Group] = {}
            for member in found:
                if member.queue:
                    groups.setdefault(member.queue, Group()).members.append(member)
            route = Route(tuple(m for m in found if not m.queue), tuple(groups.values()))
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[subject] = route
        return route

    def _forget(self) -> None:
        self._routes.clear()
