"""`breakwater.yaml` -> `Config`, or every mistake in it with its path, line and the nearest valid name.

The text becomes a tree (`yaml_tree`), the tree is read by the table of keys (`table`, `kinds`), and here
the values become the structs of `model.py`: providers are resolved, defaults filled in, and what only
makes sense together is checked. Reads no file and no secret.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeVar, cast

from msgspec import structs

from breakwater_gateway.config import table as keys
from breakwater_gateway.config.amounts import format_duration
from breakwater_gateway.config.budgets import read_budgets, read_rate_limits
from breakwater_gateway.config.catalogue import find
from breakwater_gateway.config.hosts import Host, Hosts
from breakwater_gateway.config.kinds import Named
from breakwater_gateway.config.model import (
    Auth,
    BreakerPolicy,
    CachePolicy,
    CacheScope,
    Capability,
    Config,
    Deployment,
    Embeddings,
    Jitter,
    KeyRef,
    Limits,
    Model,
    Price,
    ProbeBy,
    RetryPolicy,
    Semantic,
    StrategyName,
    Telemetry,
    Timeouts,
    Veto,
)
from breakwater_gateway.config.problems import ConfigError, Path, Problem, Report, shown
from breakwater_gateway.config.provider import PARAMS, needs, settle
from breakwater_gateway.config.recovery import (
    ReadFile,
    check_recovery,
    read_hedge,
    read_ladder,
    read_on_content_filter,
    read_on_context_length,
    read_static_answers,
)
from breakwater_gateway.config.routes import check_loops, read_routes
from breakwater_gateway.config.sections import Block, Key
from breakwater_gateway.config.targets import KEYS_MAX, RESERVED, key_target
from breakwater_gateway.config.yaml_tree import parse
from breakwater_protocol.subjects import BadToken, encode_token

__all__ = ["ConfigError", "Problem", "load_text"]

T = TypeVar("T")

_EMPTY: Final = Block({}, {}, 1, 1)


def load_text(
    text: str | bytes,
    *,
    source: str,
    environment: Mapping[str, str],
    read_file: ReadFile | None = None,
) -> Config:
    """The configuration that `text` describes; `source` names it in messages.

    `read_file` answers for the files that it names; without it there are none.

    `environment` only decides which of a provider's usual variables is meant where the file names no
    key. Raises `ConfigError` with all mistakes found, and nothing else.
    """
    report = Report(source)
    root = parse(text, report)
    block = None if root is None else keys.ROOT.read(root, (), report)
    if block is None:
        raise report.error()
    config = _Builder(report, environment).config(block, read_file)
    report.raise_any()
    return config


class _Builder:
    def __init__(self, report: Report, environment: Mapping[str, str]) -> None:
        self._report = report
        self._environment = environment
        self._hosts = Hosts(report, environment)
        self._ids: set[str] = set()
        self._made: dict[str, int] = {}
        """How often each provider/model has been made an id, so that a repeat need not be searched."""

    @staticmethod
    def _auth(block: Block) -> Auth:
        usual = Auth()
        return Auth(
            mode=cast("Literal['open', 'keys']", block.get(keys.AUTH_MODE) or usual.mode),
            nats=cast("Literal['trust', 'key']", block.get(keys.AUTH_NATS) or usual.nats),
        )

    def config(self, root: Block, read_file: ReadFile | None) -> Config:
        providers = root.get(keys.PROVIDERS)
        self._hosts.own(providers or {})
        entries = root.get(keys.MODELS) or {}
        self._claim_ids(entries)
        models = {name: self._model(name, entry) for name, entry in entries.items()}
        check_loops(models, entries, self._report)
        config = Config(
            models=models,
            auth=self._auth(root.get(keys.AUTH) or _EMPTY),
            telemetry=self._telemetry(root.get(keys.TELEMETRY) or _EMPTY),
            limits=self._limits(root.get(keys.LIMITS) or _EMPTY),
            budgets=read_budgets(root.get(keys.BUDGETS), self._report),
            rate_limits=read_rate_limits(root.get(keys.RATE_LIMITS), self._report),
            static_answers=read_static_answers(root, read_file, self._report),
            embeddings=self._embeddings(root.get(keys.EMBEDDINGS)),
        )
        self._check_embeddings(root, config, entries)
        check_recovery(config, entries, self._report)
        return self._with_embedder(root, config)

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
                self._check_id(id_, path, (line, column))
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
        retry = self._retry(block.get(keys.RETRY) or _EMPTY, (*path, "retry"))
        return Model(
            name=name,
            deployments=tuple(deployments),
            strategy=cast("StrategyName", block.get(keys.STRATEGY) or "simple-shuffle"),
            routes=read_routes(block, (*path, "routes"), deployments, self._report),
            unsupported_params=cast(
                "Literal['report', 'refuse']", block.get(keys.UNSUPPORTED) or "report"
            ),
            timeouts=self._timeouts(block.get(keys.TIMEOUTS) or _EMPTY, (*path, "timeouts")),
            retry=retry,
            breaker=self._breaker(block.get(keys.BREAKER) or _EMPTY, (*path, "breaker")),
            on_context_length=read_on_context_length(block, path, self._report),
            on_content_filter=read_on_content_filter(block),
            on_cut=cast("Literal['partial', 'continue']", block.get(keys.ON_CUT) or "partial"),
            hedge=read_hedge(block),
            ladder=read_ladder(block, path, retry.attempts, self._report),
            cache=_cache(block.get(keys.CACHE) or _EMPTY),
        )

    def _deployment(self, block: Block, path: Path, name: str) -> Deployment | None:
        text = block.get(keys.MODEL)
        if text is None:
            return None
        model_path, at = (*path, keys.MODEL.name), block.mark(keys.MODEL)
        provider, slash, model = text.partition("/")
        if not slash or not provider or not model:
            example = f"openai/{text}" if not slash and find(provider) is None else "openai/gpt-4o"
            message = f"expected provider/model, such as {shown(example)}, not {shown(text)}"
            self._add(model_path, at, message)
            return None
        if "*" in model[:-1]:
            self._add(model_path, at, f"* stands only at the end of a model, not {shown(text)}")
        elif model.endswith("*") and not name.endswith("*"):
            message = (
                f"{shown(text)} passes on what the caller named, so the name above must end in *"
            )
            self._add(model_path, at, message)
        provider = self._way_in(provider, model)
        host = self._hosts.get(provider, model_path, at)
        if host is None:
            return None
        base_url = block.get(keys.BASE_URL) or host.base_url
        api_keys = self._hosts.api_keys(path, block, host, base_url)
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
            api_keys=api_keys,
            weight=_or(block.get(keys.WEIGHT), 1),
            order=block.get(keys.ORDER) or 0,
            region=block.get(keys.REGION) or "",
            pool=block.get(keys.POOL) or "",
            max_in_flight=block.get(keys.MAX_IN_FLIGHT),
            rpm=block.get(keys.RPM),
            tpm=block.get(keys.TPM),
            context_window=context_window,
            max_output=max_output,
            capabilities=_capabilities(block.get(keys.CAPABILITIES)),
            price=None
            if price is None
            else Price(
                _or(price.get(keys.PRICE_INPUT), 0),
                _or(price.get(keys.PRICE_OUTPUT), 0),
            ),
            http2=_or(block.get(keys.HTTP2), host.http2),
            headers=tuple((dict(host.headers) | dict(headers or ())).items()),
            auth=host.auth,
            params=self._params(block, path, host, base_url, keyed=bool(api_keys)),
            quirks=host.quirks,
        )

    def _way_in(self, provider: str, model: str) -> str:
        """The provider's id; of a cloud with several dialects, the way to that model."""
        known = find(provider)
        if known is None:
            return provider
        host = self._hosts.found(known.id)
        if host is None or (host.wire, host.base_url) == (known.wire, known.base_url):
            for prefix, other in known.others:
                if model.startswith(prefix):
                    return other
        return known.id

    def _params(
        self, block: Block, path: Path, host: Host, base_url: str, *, keyed: bool
    ) -> tuple[tuple[str, str | KeyRef], ...]:
        """What the deployment's settings come to: its own, its provider's, the usual variables'."""
        own = keys.settings_of(block)
        needed = needs(base_url, host.wire, host.auth, keyed=keyed)
        section = block.get(keys.SETTINGS_OF) or _EMPTY
        for key in keys.SETTINGS:
            if section.has(key) and key.name not in needed:
                used = ", ".join(needed) or "none"
                message = f"nothing uses it; of this provider these are used: {used}"
                self._add((*path, "params", key.name), section.mark(key), message)
        given = {**host.params, **own}
        if "region" in needed and "region" not in given and block.has(keys.REGION):
            region = block.get(keys.REGION) or ""
            if re.fullmatch(PARAMS["region"].pattern, region):
                given["region"] = region
            elif region:
                message = (
                    f"expected {PARAMS['region'].expected}, since the URL names it;"
                    " for another label write params: {region: ...}"
                )
                self._add((*path, "region"), block.mark(keys.REGION), message)
        found, missing = settle(needed, given, host.variables, self._environment)
        unreadable = {key.name for key in keys.SETTINGS if section.has(key)}
        for name in missing:
            if name not in unreadable:
                message = f'"{name}" is missing: {PARAMS[name].expected}, which {base_url} needs'
                self._add((*path, "params"), section.mark(), message)
        return found

    def _made_id(self, base: str, path: Path, at: tuple[int, int]) -> str:
        count = self._made.get(base, 0) + 1
        id_ = base if count == 1 else f"{base}-{count}"
        while id_ in self._ids:
            count += 1
            id_ = f"{base}-{count}"
        self._made[base] = count
        self._check_id(id_, path, at)
        self._ids.add(id_)
        return id_

    def _check_id(self, id_: str, path: Path, at: tuple[int, int]) -> None:
        """It names a breaker, and so do its keys."""
        if RESERVED.fullmatch(id_):
            message = (
                f"{shown(id_)} is no id: @... names a provider's region, and ...#key1 a key"
                " of a deployment"
            )
            self._add(path, at, message)
        if self._check_token(id_, path, at):
            self._check_token(key_target(id_, KEYS_MAX - 1), path, at)

    def _check_token(self, text: str, path: Path, at: tuple[int, int]) -> bool:
        """A name becomes one token of a subject (`subjects.encode_token`), which has a bound."""
        try:
            encode_token(text)
        except BadToken as bad:
            self._add(path, at, str(bad))
            return False
        return True

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
            min_rate=_or(block.get(keys.MIN_RATE), usual.min_rate),
            rate_window_s=self._within(
                block, keys.RATE_WINDOW, usual.rate_window_s, bound=bound, path=path
            ),
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
            jitter=cast("Jitter", block.get(keys.JITTER) or usual.jitter),
            max_cost_nano_usd=block.get(keys.MAX_COST),
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
            ramp_s=_or(block.get(keys.RAMP), usual.ramp_s),
            probe=cast("ProbeBy", block.get(keys.PROBE) or usual.probe),
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
        traces = block.get(keys.TRACES) or _EMPTY
        return Telemetry(
            log=log,  # type: ignore[arg-type]  # the table allows no other
            level=level,  # type: ignore[arg-type]
            otlp=block.get(keys.OTLP) or usual.otlp,
            trace_sample=_or(traces.get(keys.TRACE_SAMPLE), usual.trace_sample),
            trace_slow_s=_or(traces.get(keys.TRACE_SLOW), usual.trace_slow_s),
        )

    def _limits(self, block: Block) -> Limits:
        usual = Limits()
        return Limits(
            body_bytes=_or(block.get(keys.BODY_BYTES), usual.body_bytes),
            answer_bytes=_or(block.get(keys.ANSWER_BYTES), usual.answer_bytes),
            connections=_or(block.get(keys.CONNECTIONS), usual.connections),
            in_flight=_or(block.get(keys.IN_FLIGHT), usual.in_flight),
            cache_bytes=_or(block.get(keys.CACHE_BYTES), usual.cache_bytes),
            cache_store_bytes=_or(block.get(keys.CACHE_STORE_BYTES), usual.cache_store_bytes),
            cache_index_bytes=_or(block.get(keys.CACHE_INDEX_BYTES), usual.cache_index_bytes),
            cache_answer_bytes=_or(block.get(keys.CACHE_ANSWER_BYTES), usual.cache_answer_bytes),
        )

    def _embeddings(self, block: Block | None) -> Embeddings | None:
        if block is None:
            return None
        if block.has(keys.EMBEDDINGS_MODEL) == block.has(keys.EMBEDDINGS_LOCAL):
            message = "expected either model: <model> or local: minilm"
            self._add(("embeddings",), block.mark(), message)
            return None
        model, local = block.get(keys.EMBEDDINGS_MODEL), block.get(keys.EMBEDDINGS_LOCAL)
        return Embeddings(model=model or "", local=local or "")

    def _with_embedder(self, root: Block, config: Config) -> Config:
        """`embeddings: {model: provider/model}` describes that model, where "models" does not."""
        block = root.get(keys.EMBEDDINGS)
        name = config.embeddings.model if config.embeddings is not None else ""
        if block is None or "/" not in name or config.model(name) is not None:
            return config
        line, column = block.mark(keys.EMBEDDINGS_MODEL)
        described = Block({keys.MODEL.name: name}, {keys.MODEL.name: (line, column)}, line, column)
        deployment = self._deployment(described, ("embeddings",), name)
        if deployment is None:
            return config
        return structs.replace(config, models=config.models | {name: Model(name, (deployment,))})

    def _check_embeddings(
        self, root: Block, config: Config, entries: Mapping[str, Named[Block]]
    ) -> None:
        embeddings = config.embeddings
        if (
            embeddings is not None
            and embeddings.model
            and "/" not in embeddings.model
            and config.model(embeddings.model) is None
        ):
            block = root.get(keys.EMBEDDINGS) or _EMPTY
            close = self._report.nearest(embeddings.model, list(config.models))
            mend = f'did you mean "{close}"?' if close else 'describe it under "models"'
            self._add(
                ("embeddings", "model"),
                block.mark(keys.EMBEDDINGS_MODEL),
                f"unknown model {shown(embeddings.model)}; {mend}",
            )
        if root.has(keys.EMBEDDINGS):
            return
        for name, model in config.models.items():
            cache = entries[name].value.get(keys.CACHE)
            if model.cache.semantic is not None and cache is not None:
                self._add(
                    ("models", name, "cache", "semantic"),
                    cache.mark(keys.SEMANTIC),
                    "needs vectors: say embeddings: {local: minilm} or {model: <model>}",
                )

    def _add(self, path: Path, at: tuple[int, int], message: str) -> None:
        self._report.add(path, at[0], at[1], message)


def _cache(block: Block) -> CachePolicy:
    usual = CachePolicy()
    return CachePolicy(
        exact_s=_or(block.get(keys.EXACT), usual.exact_s),
        stale_if_error_s=_or(block.get(keys.STALE), usual.stale_if_error_s),
        semantic=None if (said := block.get(keys.SEMANTIC)) is None else _semantic(said),
        scope=cast("CacheScope", block.get(keys.SCOPE) or usual.scope),
        sampled=_or(block.get(keys.SAMPLED), usual.sampled),
    )


def _semantic(block: Block) -> Semantic:
    usual = Semantic()
    threshold = _or(block.get(keys.THRESHOLD), 0.95)
    return Semantic(
        threshold=threshold if isinstance(threshold, float) else None,
        target=_or(block.get(keys.TARGET), usual.target),
        ttl_s=_or(block.get(keys.SEMANTIC_TTL), usual.ttl_s),
        veto=cast("Veto", block.get(keys.VETO) or usual.veto),
        margin=_or(block.get(keys.MARGIN), usual.margin),
        shadow=_or(block.get(keys.SHADOW), usual.shadow),
    )


def _capabilities(words: tuple[str | None, ...] | None) -> tuple[Capability, ...] | None:
    if words is None:
        return None
    return cast("tuple[Capability, ...]", tuple(dict.fromkeys(w for w in words if w is not None)))


def _or(value: T | None, usual: T) -> T:
    return usual if value is None else value
