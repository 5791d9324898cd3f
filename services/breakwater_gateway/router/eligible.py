"""Which requests have a key in the cache, and which one: what the path of a request and an operator's question
about it both ask, with one answer.

Pure; it remembers what repeats from request to request, and nothing that changes an answer.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from breakwater_gateway.cache.decision import TEMPERATURE_MAX
from breakwater_gateway.cache.key import Key, Keys, NotCached, head_of
from breakwater_gateway.config.model import CachePolicy, Model
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.repeats import Place, Repeat
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest

HEADS_MAX: Final = 4_096
NATIVE_HEADER_MAX: Final = 2_048
_OFF: Final = NotCached("off")
_NOT_CONFIGURED: Final = NotCached("not_configured")
_SAMPLED: Final = NotCached("sampled")
_NO_USER: Final = NotCached("no_user")
_NO_KEY: Final = NotCached("no_key")


class Eligible:
    __slots__ = ("_aliases", "_heads", "_keys")

    def __init__(self) -> None:
        self._keys = Keys()
        self._heads: dict[Place, bytes] = {}
        self._aliases: dict[int, tuple[Model, str]] = {}
        """By identity: a model's deployments may be narrowed for a request."""

    def forget(self) -> None:
        """The configuration changed: names may stand for other models."""
        self._aliases.clear()
        self._heads.clear()

    def key(
        self,
        *,
        tenant: str,
        api: str,
        model: Model,
        asked: Asked,
        body: bytes,
        options: Options,
        native: Mapping[str, str],
        repeat: Repeat | None = None,
    ) -> Key | NotCached:
        """`model`: the one asked for, as routed; `native`: the caller's header fields for its provider;
        `repeat`: what is known of the body from when it came before."""
        policy = model.cache
        if options.cache == "off":
            return _OFF
        if not policy.exact_s and policy.semantic is None:
            return _NOT_CONFIGURED
        # Whoever matches by meaning accepts that an answer is one of many.
        if policy.semantic is None and not policy.sampled and _is_sampled(asked, body):
            return _SAMPLED
        scope = scope_of(policy, options, asked)
        if not scope:
            return _NO_USER if policy.scope == "user" else _NO_KEY
        points_to = self._points_to(model)
        place: Place = (tenant, scope, api, points_to, asked.model, options.cache_namespace)
        if native:
            place = (*place, *(f"{k}:{v}" for k, v in sorted(native.items())))
        key = None if repeat is None else repeat.keys.get(place)
        if key is None:
            key = self._keys.of(self._head(place, native), body, api=api)
            if repeat is not None:
                repeat.keep(place, key)
        if not policy.sampled and isinstance(key, Key) and key.sampled:
            hot = key.temperature is not None and key.temperature > TEMPERATURE_MAX
            if policy.semantic is None or hot:
                return _SAMPLED
        return key

    def _head(self, place: Place, native: Mapping[str, str]) -> bytes:
        found = self._heads.get(place)
        if found is None:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            tenant, scope, api, points_to, name, namespace = place[:6]
            found = self._heads[place] = head_of(
                tenant=tenant,
                scope=scope,
                api=api,
                model=name,
                points_to=points_to,
                namespace=namespace,
                native=native,
            )
        return found

    def _points_to(self, model: Model) -> str:
        """The alias's own revision: another deployment behind the name makes other answers. A change to
        another model leaves this one's answers alone."""
        known = self._aliases.get(id(model))
        if known is None:
            if len(self._aliases) >= HEADS_MAX:
                self._aliases.clear()
            what = [
                (d.provider, d.model, d.wire, d.base_url, [(k, str(v)) for k, v in d.params])
                for d in model.deployments
            ]
            digest = hashlib.blake2b(msgspec.json.encode(what), digest_size=16).hexdigest()
            known = self._aliases[id(model)] = (model, digest)
        return known[1]


def scope_of(policy: CachePolicy, options: Options, asked: Asked) -> str:
    """Whose answers may be given; empty when the request does not say whose it is."""
    match policy.scope:
        case "tenant":
            return "tenant"
        case "user":
            in_body = asked.user if isinstance(asked, ChatRequest | EmbeddingsRequest) else ""
            user = options.user or in_body
            return f"user:{user}" if user else ""
        case "key":
            return f"key:{options.key}" if options.key else ""


def native_of(api: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Header fields of the caller's dialect that travel to the provider, and so change the answer."""
    if api != "messages":
        return {}
    return {name: headers[name][:NATIVE_HEADER_MAX] for name in h.NATIVE if name in headers}


def lowered(options: Options, model: Model) -> f.InvalidRequest | None:
    """A caller may only raise the threshold in force."""
    asked, semantic = options.cache_threshold, model.cache.semantic
    if asked is None or semantic is None or semantic.threshold is None:
        return None
    if asked < semantic.threshold:
        return f.InvalidRequest(
            f"the header {h.CACHE_THRESHOLD} may only raise this model's threshold of"
            f" {semantic.threshold:g}, not lower it",
            param=h.CACHE_THRESHOLD,
        )
    return None


def _is_sampled(asked: Asked, body: bytes) -> bool:
    """Without reading the whole body: it does not ask for temperature 0."""
    match asked:
        case ChatRequest():
            return asked.temperature is None or asked.temperature > 0
        case EmbeddingsRequest():
            return False
        case _:
            return b'"temperature"' not in body
