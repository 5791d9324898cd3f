"""Providers as deployments inherit them: those of the catalogue, and what the file says of them or adds."""

from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import urlsplit

from msgspec import Struct, structs

from breakwater_gateway.config import not_served
from breakwater_gateway.config import table as keys
from breakwater_gateway.config.catalogue import CATALOGUE, SPELLINGS, find
from breakwater_gateway.config.kinds import Named, refusal
from breakwater_gateway.config.model import (
    AuthScheme,
    KeyRef,
    QuirkValue,
    Wire,
)
from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.provider import Given, Provider, auth_of
from breakwater_gateway.config.sections import Block

_EMPTY: Final = Block({}, {}, 1, 1)


class Host(Struct, frozen=True):
    """A provider as deployments inherit it."""

    wire: Wire
    base_url: str
    api_keys: tuple[KeyRef, ...]
    headers: tuple[tuple[str, str], ...] = ()
    http2: bool = True
    auth: AuthScheme = "bearer"
    params: Given = {}
    """Those that the file names."""
    variables: Mapping[str, tuple[str, ...]] = {}
    quirks: tuple[tuple[str, QuirkValue], ...] = ()


class Hosts:
    def __init__(self, report: Report, environment: Mapping[str, str]) -> None:
        self._report = report
        self._environment = environment
        self._known: dict[str, Host | None] = {}
        """None: of a provider with a mistake, which its deployments need not repeat."""

    def own(self, entries: Mapping[str, Named[Block]]) -> None:
        spelled: dict[str, str] = {}
        for name, entry in entries.items():
            id_ = SPELLINGS.get(name, name)
            if id_ in spelled:
                message = f"the same provider as {shown(spelled[id_])}"
                self._add(("providers", name), (entry.line, entry.column), message)
            spelled[id_] = name
            self._known[id_] = self._own_host(name, entry.value)
        for name, entry in entries.items():
            # What is said of a cloud is meant for all ways into it.
            known, block = find(name), entry.value
            if known is not None and not block.has(keys.WIRE) and not block.has(keys.BASE_URL):
                for _, other in known.others:
                    entry_of = CATALOGUE[other]
                    if other not in spelled and entry_of.wire in not_served.SERVED_WIRES:
                        self._known[other] = self._inheriting(entry_of, block, name)

    def _own_host(self, name: str, block: Block) -> Host | None:
        path: Path = ("providers", name)
        known = find(name)
        base_url = block.get(keys.BASE_URL)
        if known is not None:
            if not block.has(keys.WIRE) and not self._served(known.wire, name, path, block.mark()):
                return None
            return self._inheriting(known, block, name)
        if base_url is None:
            if not block.has(keys.BASE_URL):
                message = '"base_url" is missing: the catalogue does not know this provider'
                self._add(path, block.mark(), message)
            return None
        wire = cast("Wire", block.get(keys.WIRE) or "openai")
        return self._described(Host(wire, base_url, (), auth=auth_of(wire)), block, path)

    def _inheriting(self, known: Provider, block: Block, name: str) -> Host | None:
        """A provider of the catalogue, with what the file says of it."""
        if block.has(keys.BASE_URL) and block.get(keys.BASE_URL) is None:
            return None
        wire = cast("Wire", block.get(keys.WIRE) or known.wire)
        host = self._known_host(known)
        if wire != known.wire:
            host = structs.replace(host, wire=wire, auth=auth_of(wire))
        return self._described(host, block, ("providers", name))

    def _known_host(self, known: Provider) -> Host:
        key = known.key(self._environment)
        return Host(
            wire=known.wire,
            base_url=known.base_url,
            api_keys=(key,) if key else (),
            auth=known.auth,
            variables=dict(known.variables),
            quirks=known.quirks,
        )

    def _described(self, host: Host, block: Block, path: Path) -> Host:
        """`host` with what its block says on top."""
        base_url = block.get(keys.BASE_URL) or host.base_url
        own = keys.quirks_of(block.get(keys.QUIRKS) or _EMPTY)
        return structs.replace(
            host,
            base_url=base_url,
            api_keys=self.api_keys(path, block, host, base_url),
            headers=block.get(keys.HEADERS) or (),
            http2=True if (http2 := block.get(keys.HTTP2)) is None else http2,
            auth=cast("AuthScheme", block.get(keys.AUTH_SCHEME) or host.auth),
            params=keys.settings_of(block),
            quirks=tuple((dict(host.quirks) | own).items()),
        )

    def found(self, id_: str) -> Host | None:
        """A provider that the file names, or that was asked for before."""
        return self._known.get(id_)

    def get(self, id_: str, path: Path, at: tuple[int, int]) -> Host | None:
        """The provider of that id; None after reporting that there is none at `path`, or nothing new to report."""
        if id_ in self._known:
            return self._known[id_]
        known = CATALOGUE.get(id_)
        if known is not None:
            served = self._served(known.wire, id_, path, at)
            self._known[id_] = self._known_host(known) if served else None
            return self._known[id_]
        close = self._report.nearest(id_, [*self._known, *CATALOGUE, *SPELLINGS])
        mend = f'did you mean "{close}"?' if close else 'describe it under "providers"'
        self._add(path, at, f"unknown provider {shown(id_)}; {mend}")
        return None

    def _served(self, wire: Wire, name: str, path: Path, at: tuple[int, int]) -> bool:
        if wire in not_served.SERVED_WIRES:
            return True
        self._add(path, at, refusal(f"{not_served.WIRES[wire]} (provider {name})", ""))
        return False

    def api_keys(
        self, path: Path, block: Block, inherited: Host, base_url: str
    ) -> tuple[KeyRef, ...]:
        """What the block names, else what is inherited, unless that would send a key to another host."""
        own = block.get(keys.API_KEY)
        if own is not None:
            return own
        if (
            inherited.api_keys
            and not block.has(keys.API_KEY)
            and not _same_site(base_url, inherited.base_url)
        ):
            refs = ", ".join(map(str, inherited.api_keys))
            self._add(
                path,
                block.mark(keys.BASE_URL),
                f'"api_key" is missing: {refs} is not sent to another host unasked;'
                " name a key, or write api_key: [] for none",
            )
        return inherited.api_keys

    def _add(self, path: Path, at: tuple[int, int], message: str) -> None:
        self._report.add(path, at[0], at[1], message)


def _same_site(a: str, b: str) -> bool:
    """Whether two URLs are of one owner, judged by the last two labels of their hosts."""
    first, second = urlsplit(a).hostname or "", urlsplit(b).hostname or ""
    if first == second:
        return True
    return (
        first.split(".")[-2:] == second.split(".")[-2:]
        and not first.replace(".", "").isdigit()
        and first.count(".") > 0
    )
