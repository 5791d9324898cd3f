"""What the cluster hears of an attempt that has ended: its event, its measures, an alert where no price is known."""

from typing import Final

from msgspec import Struct

from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.telemetry import Counter, Histogram
from breakwater_gateway.worker.run import Run
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage
from breakwater_protocol.events import Alert, AttemptFinished

_UNPRICED_S: Final = 3600.0
_UNPRICED_MAX: Final = 256


class _Meters(Struct, frozen=True):
    attempts: Counter
    first_token: Histogram
    tokens_in: Counter
    tokens_out: Counter


class Events:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._meters: dict[tuple[str, str], _Meters] = {}
        self._subjects: dict[tuple[str, str], str] = {}
        self._unpriced: set[tuple[str, str]] = set()
        self._unpriced_since = 0.0

    def ended(self, run: Run, failure: f.Failure | None, *, partial: str) -> None:
        work, context = run.work, self._context
        outcome = "ok" if failure is None else f.kind(failure)
        if partial and not isinstance(failure, f.Cancelled):
            outcome = "partial"
        first_ms = run.clock.first_token_ms()
        duration_s = context.clock.now() - run.clock.began
        at = context.clock.wall()
        event = AttemptFinished(
            request=work.request,
            attempt=work.attempt,
            tenant=work.tenant,
            model=work.model,
            deployment=work.deployment,
            target=work.target,
            provider=run.deployment.provider if run.deployment else "",
            worker=context.id,
            outcome=outcome,
            at=at,
            epoch=work.epoch,
            failure="" if failure is None else f.kind(failure),
            against_target=failure is not None and _is_against_target(run, failure),
            status=failure.provider_status if failure else None,
            retry_after_s=f.retry_after_s(failure) if failure else None,
            first_token_ms=first_ms,
            duration_ms=duration_s * 1000,
            usage=run.usage,
            metered=run.metered,
            cost_nano_usd=run.cost(),
            api=work.api,
            stream=work.stream,
            rung=work.rung,
            user=work.user,
            org=work.org,
            feature=work.feature,
            properties=work.properties,
            message=failure.message[:200] if failure else "",
            in_stall=run.graced,
            limits=run.limits,
            key=work.key,
            region=run.deployment.region if run.deployment else "",
            key_epoch=work.key_epoch,
            region_epoch=work.region_epoch,
            provider_model=work.provider_model,
            traceparent=work.traceparent,
        )
        self._measure(work.deployment, failure, first_ms, run.usage)
        place = (work.target, outcome)
        subject = self._subjects.get(place)
        if subject is None:
            subject = self._subjects[place] = context.subjects.attempt.at(work.target, outcome)
        context.bus.publish(
            subject,
            context.subjects.attempt.encode(event),
            headers=cloudevents.headers_for(
                AttemptFinished,
                source=f"worker/{context.id}",
                at=at,
                id_=context.clock.new_id("evt_"),
                traceparent=work.traceparent,
            ),
        )
        if run.usage is not None and event.cost_nano_usd is None:
            self._alert_unpriced(run, at)

    def _alert_unpriced(self, run: Run, at: float) -> None:
        """Once an hour for each deployment and model, so many of them at most."""
        work, context = run.work, self._context
        now = context.clock.now()
        if now - self._unpriced_since >= _UNPRICED_S:
            self._unpriced.clear()
            self._unpriced_since = now
        place = (work.deployment, work.provider_model)
        if place in self._unpriced or len(self._unpriced) >= _UNPRICED_MAX:
            return
        self._unpriced.add(place)
        model = work.provider_model[:200]
        alert = Alert(
            kind="unpriced",
            message=f"no price is known for {model} at {work.deployment}: its calls have no cost",
            at=at,
            source=f"worker/{context.id}",
            target=work.target,
            model=model,
        )
        context.bus.publish(
            context.subjects.alert.at("unpriced"),
            context.subjects.alert.encode(alert),
            headers=cloudevents.headers_for(
                Alert, source=f"worker/{context.id}", at=at, id_=context.clock.new_id("evt_")
            ),
        )

    def _measure(
        self,
        deployment: str,
        failure: f.Failure | None,
        first_ms: float | None,
        usage: Usage | None,
    ) -> None:
        metrics = self._context.metrics
        error = "none" if failure is None else f.kind(failure)
        place = (deployment, error)
        meters = self._meters.get(place)
        if meters is None:
            meters = self._meters[place] = _Meters(
                attempts=metrics.counter(
                    "breakwater_attempts_total", deployment=deployment, error=error
                ),
                first_token=metrics.histogram("breakwater_ttft_seconds", deployment=deployment),
                tokens_in=metrics.counter("breakwater_tokens_total", type="input"),
                tokens_out=metrics.counter("breakwater_tokens_total", type="output"),
            )
        meters.attempts.add()
        if first_ms is not None and failure is None:
            meters.first_token.observe(first_ms / 1000)
        if usage is not None:
            meters.tokens_in.add(usage.input)
            meters.tokens_out.add(usage.output)


def _is_against_target(run: Run, failure: f.Failure) -> bool:
    match failure:
        case f.FirstTokenTimeout():
            return not run.work.hurried
        case f.TotalTimeout():
            return run.work.full_time and run.clock.first is None
        case _:
            return f.spec(failure).against_target
