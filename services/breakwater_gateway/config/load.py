"""`breakwater.yaml` -> `Config`, or every mistake in it with its path, line and the nearest valid name.

The text becomes a tree (`yaml_tree`), the tree is read by the table of keys (`table`, `kinds`), and here
the values become the structs of `model.py`: providers are resolved, defaults filled in, and what only
makes sense together is checked. Reads no file and no secret.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from msgspec import Struct

from breakwater_gateway.config import not_served
from breakwater_gateway.config import table as keys
from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.kinds import (
    Block,
    Key,
    Named,
    format_duration,
    refusal,
)
from breakwater_gateway.config.model import (
    Auth,
    BreakerPolicy,
    Config,
    Deployment,
    KeyRef,
    Limits,
    Model,
    Price,
    RetryPolicy,
    StrategyName,
    Telemetry,
    Timeouts,
    Wire,
)
from breakwater_gateway.config.problems import ConfigError, Path, Problem, Report, shown
from breakwater_gateway.config.yaml_tree import parse
from breakwater_protocol.subjects import BadToken, encode_token

__all__ = ["ConfigError", "MissingKey", "Problem", "load_text", "missing_keys"]

T = TypeVar("T")

_EMPTY: Final = Block({}, {}, 1, 1)


def load_text(text: str | bytes, *, source: str, environment: Mapping[str, str]) -> Config:
    """The configuration that `text` describes; `source` names it in messages.

    `environment` only decides which of a provider's usual variables is meant where the file names no
    key. Raises `ConfigError` with all mistakes found, and nothing else.
    """
    report = Report(source)
    root = parse(text, report)
    block = None if root is None else keys.ROOT.read(root, (), report)
    if block is None:
        raise report.error()
    config = _Builder(report, environment).config(block)
    report.raise_any()
    return config


class MissingKey(Struct, frozen=True):
    """A key reference that cannot be resolved here. No load error: another machine may have it."""

    ref: KeyRef
    deployments: tuple[str, ...]
    """Ids of those that use it."""

    def __str__(self) -> str:
        more = len(self.deployments) - 3
        users = ", ".join(self.deployments[:3]) + (f" and {more} more" if more > 0 else "")
        reason = "is not set" if self.ref.source == "env" else "cannot be read"
        return f"{self.ref} {reason} here; needed by {users}"


def missing_keys(
    config: Config,
    environment: Mapping[str, str],
    *,
    readable: Callable[[str], bool] | None = None,
) -> list[MissingKey]:
    """Key references without a value here, in the file's order.

    `readable` says whether a `file:` reference can be read; without it files are not looked at.
    """
    users: dict[KeyRef, list[str]] = {}
    for model in config.models.values():
        for deployment in model.deployments:
            for ref in deployment.api_keys:
                users.setdefault(ref, []).append(deployment.id)
    return [
        MissingKey(ref, tuple(ids))
        for ref, ids in users.items()
        if (not environment.get(ref.name) if ref.source == "env" else _unreadable(ref, readable))
    ]


def _unreadable(ref: KeyRef, readable: Callable[[str], bool] | None) -> bool:
    return readable is not None and not readable(ref.name)


class _Host(Struct, frozen=True):
    """A provider as deployments inherit it."""

    wire: Wire
    base_url: str
    api_keys: tuple[KeyRef, ...]
    headers: tuple[tuple[str, str], ...] = ()
    http2: bool = True


class _Builder:
    def __init__(self, report: Report, environment: Mapping[str, str]) -> None:
        self._report = report
        self._environment = environment
        self._hosts: dict[str, _Host | None] = {}
        """None: of a provider with a mistake, which its deployments need not repeat."""
        self._ids: set[str] = set()
        self._made: dict[str, int] = {}
        """How often each provider/model has been made an id, so that a repeat need not be searched."""

    def config(self, root: Block) -> Config:
        for name, entry in (root.get(keys.PROVIDERS) or {}).items():
            self._hosts[name] = self._own_host(name, entry.value)
        entries = root.get(keys.MODELS) or {}
        self._claim_ids(entries)
        models = {name: self._model(name, entry) for name, entry in entries.items()}
        return Config(
            models=models,
            auth=Auth(),
            telemetry=self._telemetry(root.get(keys.TELEMETRY) or _EMPTY),
            limits=self._limits(root.get(keys.LIMITS) or _EMPTY),
        )

    # --- providers ------------------------------------------------------------------------------

    def _own_host(self, name: str, block: Block) -> _Host | None:
        path: Path = ("providers", name)
        known = CATALOGUE.get(name)
        if known is None and name in not_served.PROVIDERS:
            self._add(path, block.mark(), refusal(not_served.PROVIDERS[name], ""))
            return None
        base_url = block.get(keys.BASE_URL)
        if base_url is None:
            if block.has(keys.BASE_URL):
                return None
            if known is None:
                message = '"base_url" is missing: the catalogue does not know this provider'
                self._add(path, block.mark(), message)
                return None
            base_url = known.base_url
        usual = known.key(self._environment) if known else None
        inherited = _Host(
            wire=cast("Wire", block.get(keys.WIRE) or "openai"),
            base_url=known.base_url if known else base_url,
            api_keys=(usual,) if usual else (),
        )
        return _Host(
            wire=inherited.wire,
            base_url=base_url,
            api_keys=self._api_keys(path, block, inherited, base_url),
            headers=block.get(keys.HEADERS) or (),
            http2=_or(block.get(keys.HTTP2), True),
        )

    def _host(self, name: str, path: Path, at: tuple[int, int]) -> _Host | None:
        if name in self._hosts:
            return self._hosts[name]
        known = CATALOGUE.get(name)
        if known is not None:
            key = known.key(self._environment)
            host = _Host("openai", known.base_url, (key,) if key else ())
            self._hosts[name] = host
            return host
        if name in not_served.PROVIDERS:
            message = refusal(f"{not_served.PROVIDERS[name]} (provider {name})", "")
            self._add(path, at, message)
            return None
        close = self._report.nearest(name, [*self._hosts, *CATALOGUE])
        mend = f'did you mean "{close}"?' if close else 'describe it under "providers"'
        self._add(path, at, f"unknown provider {shown(name)}; {mend}")
        return None

    def _api_keys(
        self, path: Path, block: Block, inherited: _Host, base_url: str
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

    # --- models ---------------------------------------------------------------------------------

    def _claim_ids(self, entries: Mapping[str, Named[Block]]) -> None:
        """Ids that were written take precedence over those that are made, wherever they stand."""
        places: dict[str, int] = {}
        for name, entry in entries.items():
            blocks = entry.value.get(keys.DEPLOYMENTS)
            for index, block in enumerate(blocks or ()):
                id_ = None if block is None else block.get(keys.ID)
                if block is None or id_ is None:
                    continue
                path: Path = ("models", name, "deployments", index, "id")
                line, column = block.mark(keys.ID)
                if id_ in places:
                    message = (
                        f"the id {shown(id_)} is taken by the deployment on line {places[id_]}"
                    )
                    self._add(path, (line, column), message)
                places.setdefault(id_, line)
                self._check_token(id_, path, (line, column))
        self._ids.update(places)

    def _model(self, name: str, entry: Named[Block]) -> Model:
        path: Path = ("models", name)
        at = (entry.line, entry.column)
        if "*" in name[:-1]:
            self._add(path, at, "* stands only at the end of a name, as in openai/*")
        self._check_token(name, path, at)
        block = entry.value
        deployments: list[Deployment] = []
        blocks = block.get(keys.DEPLOYMENTS) or ()
        for index, each in enumerate(blocks):
            if each is not None:
                built = self._deployment(each, (*path, "deployments", index), name)
                if built is not None:
                    deployments.append(built)
        if (
            len(deployments) == len(blocks)
            and deployments
            and not any(d.weight for d in deployments)
        ):
            message = (
                "every deployment has weight 0, so none would ever be chosen; give one a weight"
            )
            self._add((*path, "deployments"), block.mark(keys.DEPLOYMENTS), message)
        return Model(
            name=name,
            deployments=tuple(deployments),
            strategy=cast("StrategyName", block.get(keys.STRATEGY) or "simple-shuffle"),
            timeouts=self._timeouts(block.get(keys.TIMEOUTS) or _EMPTY, (*path, "timeouts")),
            retry=self._retry(block.get(keys.RETRY) or _EMPTY, (*path, "retry")),
            breaker=self._breaker(block.get(keys.BREAKER) or _EMPTY, (*path, "breaker")),
        )

    def _deployment(self, block: Block, path: Path, name: str) -> Deployment | None:
        text = block.get(keys.MODEL)
        if text is None:
            return None
        model_path, at = (*path, keys.MODEL.name), block.mark(keys.MODEL)
        provider, slash, model = text.partition("/")
        if not slash or not provider or not model:
            example = (
                f"openai/{text}" if not slash and provider not in CATALOGUE else "openai/gpt-4o"
            )
            message = f"expected provider/model, such as {shown(example)}, not {shown(text)}"
            self._add(model_path, at, message)
            return None
        if "*" in model and model != "*":
            self._add(
                model_path, at, f"expected the model's whole name or * alone, not {shown(text)}"
            )
        elif model == "*" and not name.endswith("*"):
            message = (
                f"{shown(text)} passes on what the caller named, so the name above must end in *"
            )
            self._add(model_path, at, message)
        host = self._host(provider, model_path, at)
        if host is None:
            return None
        base_url = block.get(keys.BASE_URL) or host.base_url
        price, headers = block.get(keys.PRICE), block.get(keys.HEADERS)
        context_window, max_output = block.get(keys.CONTEXT_WINDOW), block.get(keys.MAX_OUTPUT)
        if context_window is not None and max_output is not None and max_output > context_window:
            message = f"expected at most context_window ({context_window}), not {max_output}"
            self._add((*path, "max_output"), block.mark(keys.MAX_OUTPUT), message)
        return Deployment(
            id=block.get(keys.ID) or self._made_id(f"{provider}/{model}", model_path, at),
            provider=provider,
            model=model,
            wire=host.wire,
            base_url=base_url,
            api_keys=self._api_keys(path, block, host, base_url),
            weight=_or(block.get(keys.WEIGHT), 1),
            order=block.get(keys.ORDER) or 0,
            region=block.get(keys.REGION) or "",
            pool=block.get(keys.POOL) or "",
            max_in_flight=block.get(keys.MAX_IN_FLIGHT),
            rpm=block.get(keys.RPM),
            tpm=block.get(keys.TPM),
            context_window=context_window,
            max_output=max_output,
            price=None
            if price is None
            else Price(
                _or(price.get(keys.PRICE_INPUT), 0),
                _or(price.get(keys.PRICE_OUTPUT), 0),
            ),
            http2=_or(block.get(keys.HTTP2), host.http2),
            headers=tuple((dict(host.headers) | dict(headers or ())).items()),
        )

    def _made_id(self, base: str, path: Path, at: tuple[int, int]) -> str:
        count = self._made.get(base, 0) + 1
        id_ = base if count == 1 else f"{base}-{count}"
        while id_ in self._ids:
            count += 1
            id_ = f"{base}-{count}"
        self._made[base] = count
        self._check_token(id_, path, at)
        self._ids.add(id_)
        return id_

    def _check_token(self, text: str, path: Path, at: tuple[int, int]) -> None:
        """A name becomes one token of a subject (`subjects.encode_token`), which has a bound."""
        try:
            encode_token(text)
        except BadToken as bad:
            self._add(path, at, str(bad))

    # --- policies -------------------------------------------------------------------------------

    def _timeouts(self, block: Block, path: Path) -> Timeouts:
        usual = Timeouts()
        total = _or(block.get(keys.TOTAL), usual.total_s)
        bound = (keys.TOTAL, total)
        return Timeouts(
            connect_s=self._within(block, keys.CONNECT, usual.connect_s, bound=bound, path=path),
            first_token_s=self._within(
                block, keys.TTFT, usual.first_token_s, bound=bound, path=path
            ),
            idle_s=self._within(block, keys.IDLE, usual.idle_s, bound=bound, path=path),
            total_s=total,
        )

    def _retry(self, block: Block, path: Path) -> RetryPolicy:
        usual = RetryPolicy()
        cap = _or(block.get(keys.CAP), usual.cap_s)
        bound = (keys.CAP, cap)
        return RetryPolicy(
            attempts=_or(block.get(keys.ATTEMPTS), usual.attempts),
            base_s=self._within(block, keys.BASE, usual.base_s, bound=bound, path=path),
            cap_s=cap,
            budget=_or(block.get(keys.BUDGET), usual.budget),
        )

    def _breaker(self, block: Block, path: Path) -> BreakerPolicy:
        usual = BreakerPolicy()
        cap = _or(block.get(keys.OPEN_CAP), usual.open_cap_s)
        bound = (keys.OPEN_CAP, cap)
        return BreakerPolicy(
            window_s=_or(block.get(keys.WINDOW), usual.window_s),
            min_requests=_or(block.get(keys.MIN_REQUESTS), usual.min_requests),
            failure_rate=_or(block.get(keys.FAILURE_RATE), usual.failure_rate),
            consecutive=_or(block.get(keys.CONSECUTIVE), usual.consecutive),
            open_s=self._within(block, keys.OPEN, usual.open_s, bound=bound, path=path),
            open_cap_s=cap,
        )

    def _within(
        self,
        block: Block,
        key: Key[float],
        usual_s: float,
        *,
        bound: tuple[Key[float], float],
        path: Path,
    ) -> float:
        """A duration that may not exceed another one: a default gives way, a written one is refused."""
        bound_key, bound_s = bound
        value = block.get(key)
        if value is None:
            return min(usual_s, bound_s)
        unreadable = block.has(bound_key) and block.get(bound_key) is None
        if value > bound_s and not unreadable:
            by_default = "" if block.has(bound_key) else " by default"
            self._add(
                (*path, key.name),
                block.mark(key),
                f"expected at most {bound_key.name} ({format_duration(bound_s)}{by_default}),"
                f" not {format_duration(value)}",
            )
        return value

    # --- the rest -------------------------------------------------------------------------------

    def _telemetry(self, block: Block) -> Telemetry:
        usual = Telemetry()
        log = block.get(keys.LOG) or usual.log
        level = block.get(keys.LEVEL) or usual.level
        return Telemetry(log=log, level=level)  # type: ignore[arg-type]

    def _limits(self, block: Block) -> Limits:
        usual = Limits()
        return Limits(
            body_bytes=_or(block.get(keys.BODY_BYTES), usual.body_bytes),
            answer_bytes=_or(block.get(keys.ANSWER_BYTES), usual.answer_bytes),
            connections=_or(block.get(keys.CONNECTIONS), usual.connections),
            in_flight=_or(block.get(keys.IN_FLIGHT), usual.in_flight),
        )

    def _add(self, path: Path, at: tuple[int, int], message: str) -> None:
        self._report.add(path, at[0], at[1], message)


def _or(value: T | None, usual: T) -> T:
    return usual if value is None else value


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
