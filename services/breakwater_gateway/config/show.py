"""The effective configuration as data and as YAML that loads again: every default filled in, no secret."""

from decimal import Decimal
from typing import Final

import yaml

from breakwater_gateway.config.amounts import format_duration
from breakwater_gateway.config.budgets import plain_budget, plain_rate_limit, usd_text
from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.model import Config, Deployment, Model, Price, Semantic, Telemetry
from breakwater_gateway.config.provider import Provider, auth_of
from breakwater_gateway.config.recovery import show_recovery, show_static_answers
from breakwater_gateway.config.routes import plain_route

_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Plain = dict[str, object]


def effective(config: Config) -> Plain:
    """The shape of `breakwater.yaml`. Deployments say everything themselves but what belongs to a provider;
    of providers only those are named that the catalogue does not know, or not so."""
    data: Plain = {"models": {name: _model(model) for name, model in config.models.items()}}
    providers: Plain = {}
    for model in config.models.values():
        for each in model.deployments:
            if each.provider not in providers and (said := _provider(each)):
                providers[each.provider] = said
    if providers:
        data["providers"] = providers
    if config.budgets:
        data["budgets"] = [plain_budget(each) for each in config.budgets]
    if config.rate_limits:
        data["rate_limits"] = [plain_rate_limit(each) for each in config.rate_limits]
    data["auth"] = {"mode": config.auth.mode, "nats": config.auth.nats}
    data["telemetry"] = _telemetry(config.telemetry)
    limits = config.limits
    data["limits"] = {
        "body_bytes": limits.body_bytes,
        "answer_bytes": limits.answer_bytes,
        "connections": limits.connections,
        "in_flight": limits.in_flight,
        "cache_bytes": limits.cache_bytes,
        "cache_store_bytes": limits.cache_store_bytes,
        "cache_index_bytes": limits.cache_index_bytes,
        "cache_answer_bytes": limits.cache_answer_bytes,
    }
    data.update(show_static_answers(config.static_answers))
    if (embeddings := config.embeddings) is not None:
        data["embeddings"] = (
            {"model": embeddings.model} if embeddings.model else {"local": embeddings.local}
        )
    return data


def to_yaml(config: Config) -> str:
    """`load_text` reads it back as the same configuration, `simulator` aside."""
    text: str = yaml.dump(
        effective(config), Dumper=_DUMPER, sort_keys=False, default_flow_style=False, width=10**6
    )
    return text


def _provider(deployment: Deployment) -> Plain:
    """What the file must say of a deployment's provider."""
    known = CATALOGUE.get(deployment.provider)
    said: Plain = {}
    if known is None:
        known = Provider("", "", "", wire=deployment.wire, auth=auth_of(deployment.wire))
        said = {"wire": deployment.wire, "base_url": deployment.base_url}
    elif deployment.wire != known.wire:
        said = {"wire": deployment.wire}
    usual_auth = known.auth if deployment.wire == known.wire else auth_of(deployment.wire)
    if deployment.auth != usual_auth:
        said["auth"] = deployment.auth
    if deployment.quirks != known.quirks:
        said["quirks"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in deployment.quirks
        }
    return said


def _model(model: Model) -> Plain:
    timeouts, retry, breaker = model.timeouts, model.retry, model.breaker
    cache = model.cache
    return {
        "strategy": model.strategy,
        **({"routes": [plain_route(each) for each in model.routes]} if model.routes else {}),
        "unsupported_params": model.unsupported_params,
        "deployments": [_deployment(each) for each in model.deployments],
        "timeouts": {
            "connect": format_duration(timeouts.connect_s),
            "ttft": format_duration(timeouts.first_token_s),
            "idle": format_duration(timeouts.idle_s),
            "total": format_duration(timeouts.total_s),
            "min_rate": timeouts.min_rate,
            "rate_window": format_duration(timeouts.rate_window_s),
        },
        "retry": {
            "attempts": retry.attempts,
            "base": format_duration(retry.base_s),
            "cap": format_duration(retry.cap_s),
            "budget": retry.budget,
            "jitter": retry.jitter,
            **(
                {}
                if retry.max_cost_nano_usd is None
                else {"max_cost": usd_text(retry.max_cost_nano_usd)}
            ),
        },
        "breaker": {
            "window": format_duration(breaker.window_s),
            "min_requests": breaker.min_requests,
            "failure_rate": breaker.failure_rate,
            "consecutive": breaker.consecutive,
            "open": format_duration(breaker.open_s),
            "open_cap": format_duration(breaker.open_cap_s),
            "ramp": format_duration(breaker.ramp_s),
            "probe": breaker.probe,
        },
        **show_recovery(model),
        "cache": {
            "exact": _or_off(cache.exact_s),
            **({} if cache.semantic is None else {"semantic": _semantic(cache.semantic)}),
            "stale_if_error": _or_off(cache.stale_if_error_s),
            "scope": cache.scope,
            "sampled": cache.sampled,
        },
    }


def _semantic(semantic: Semantic) -> Plain:
    return {
        "threshold": "certified" if semantic.threshold is None else semantic.threshold,
        "target": semantic.target,
        "ttl": format_duration(semantic.ttl_s),
        "veto": semantic.veto,
        "margin": semantic.margin,
        "shadow": semantic.shadow,
    }


def _deployment(deployment: Deployment) -> Plain:
    optional: Plain = {
        "region": deployment.region or None,
        "pool": deployment.pool or None,
        "max_in_flight": deployment.max_in_flight,
        "rpm": deployment.rpm,
        "tpm": deployment.tpm,
        "context_window": deployment.context_window,
        "max_output": deployment.max_output,
        "capabilities": None if deployment.capabilities is None else list(deployment.capabilities),
        "price": None if deployment.price is None else _price(deployment.price),
        "headers": dict(deployment.headers) or None,
    }
    return {
        "model": f"{deployment.provider}/{deployment.model}",
        "id": deployment.id,
        "base_url": deployment.base_url,
        **(
            {"params": {name: str(value) for name, value in deployment.params}}
            if deployment.params
            else {}
        ),
        "api_key": [str(ref) for ref in deployment.api_keys],
        "weight": deployment.weight,
        "order": deployment.order,
        **{name: value for name, value in optional.items() if value is not None},
        "http2": deployment.http2,
    }


def _telemetry(telemetry: Telemetry) -> Plain:
    return {
        "log": telemetry.log,
        "level": telemetry.level,
        **({"otlp": str(telemetry.otlp)} if telemetry.otlp else {}),
        "traces": {
            "sample": telemetry.trace_sample,
            "slow": format_duration(telemetry.trace_slow_s),
        },
        "record_content": False,
    }


def _or_off(seconds: float) -> str:
    return format_duration(seconds) if seconds else "off"


def _price(price: Price) -> Plain:
    return {"input": _usd_per_million(price.input), "output": _usd_per_million(price.output)}


def _usd_per_million(nano: int) -> int | float:
    """Exact on the way back: a float's shortest text has the three decimals that were read."""
    value = Decimal(nano) / 1000
    return int(value) if value == value.to_integral_value() else float(value)
