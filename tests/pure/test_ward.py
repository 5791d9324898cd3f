"""Which scope opens for which failures: key, deployment, provider-region."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from breakwater_gateway.config.model import BreakerPolicy, Config, Deployment, KeyRef, Model
from breakwater_gateway.config.targets import kind_of, scopes_of, targets_of
from breakwater_gateway.health.breaker import PROBES
from breakwater_gateway.health.ward import Moved, Ward
from breakwater_protocol.events import AttemptFinished

KEYS = (KeyRef("env", "A"), KeyRef("env", "B"))
REGION = "@p/eu"


def deployment(id_: str, *, region: str = "eu", url: str = "http://p") -> Deployment:
    return Deployment(
        id=id_,
        provider="p",
        model="m",
        wire="openai",
        base_url=url,
        region=region,
        api_keys=KEYS,
    )


def config(*deployments: Deployment) -> Config:
    return Config({"m": Model("m", deployments, breaker=BreakerPolicy())})


class Told:
    """A ward that is told stories: `a:f` a 500 of a, `a:c` no connection, `a:s` an answer, `a:m` a malformed
    one, `a:k2` key 2 refused, `a:q1` key 1 without quota, `30s` a wait."""

    OUTCOMES = {
        "s": ("ok", False, 200),
        "f": ("server_error", True, 500),
        "c": ("connect_failed", True, None),
        "m": ("malformed_answer", True, 200),
        "k": ("key_rejected", False, 401),
        "q": ("quota_exhausted", False, 429),
    }

    def __init__(self, *deployments: Deployment) -> None:
        self.ward = Ward()
        self.now = 0.0
        self.ward.cover(config(*deployments), 0.0)
        self.moved: list[Moved] = []

    def epoch(self, target: str) -> int:
        breaker = self.ward.breakers.get(target)
        return 0 if breaker is None else breaker.epoch

    def event(self, target: str, what: str, **epochs: int) -> AttemptFinished:
        outcome, against, status = self.OUTCOMES[what[0]]
        key = int(what[1:] or 1) - 1
        scopes = scopes_of(config(*self.deployments()))[target]
        return AttemptFinished(
            request="r",
            attempt=1,
            tenant="t",
            model="m",
            deployment=target,
            target=target,
            provider="p",
            worker="w",
            outcome=outcome,
            failure="" if outcome == "ok" else outcome,
            at=0.0,
            against_target=against,
            status=status,
            key=key,
            epoch=epochs.get("epoch", self.epoch(target)),
            key_epoch=epochs.get("key_epoch", self.epoch(scopes.keys[key])),
            region_epoch=epochs.get("region_epoch", self.epoch(scopes.region)),
        )

    def deployments(self) -> tuple[Deployment, ...]:
        found = self.ward.way_to(next(iter(self.ward.targets())))
        assert found is not None
        return found.model.deployments

    def tell(self, story: str) -> list[str]:
        """What opened, turned half-open or closed, as `target state cause`."""
        said = []
        for word in story.split():
            target, _, what = word.partition(":")
            if what:
                moved = self.ward.record(self.event(target, what), self.now, 0.5)
            else:
                self.now += float(word.removesuffix("s"))
                moved = self.ward.tick(self.now)
            self.moved += moved
            said += [f"{m.target} {m.change.state} {m.change.cause}" for m in moved]
        return said


@pytest.mark.parametrize(
    ("story", "said"),
    [
        ("a:f a:f a:f a:f a:f", ["a open consecutive"]),
        # Both fail, neither is answered: the provider is the explanation, and it opens once.
        ("a:f b:c a:f b:c a:f b:f a:f b:f a:f", [f"{REGION} open several_deployments"]),
        # One failure of the other is no sign yet.
        ("b:f a:f a:f a:f a:f a:f", ["a open consecutive"]),
        # The other one is answered: it is the deployment.
        ("b:f b:f b:s a:f a:f a:f a:f a:f", ["a open consecutive"]),
        # A defect of its answers is the deployment's own, whatever the other does.
        ("a:m a:m a:m a:m a:m", ["a open consecutive"]),
        # One opened alone, since nobody asked the other; asked, it fails too.
        (
            "a:f a:f a:f a:f a:f b:f b:f b:f b:f b:f",
            ["a open consecutive", f"{REGION} open several_deployments"],
        ),
        # A key refused twice in a row is out; the deployment is none the worse.
        ("a:k2 a:s1 a:k2", ["a#key2 open key_refused"]),
        ("a:k2 a:s2 a:k2 a:s1", []),
        ("a:k1 a:k2 a:s1", []),
        ("a:q1 a:s2", ["a#key1 open quota_exhausted"]),
    ],
)
def test_the_narrowest_scope_that_explains_a_failure_opens(story: str, said: list[str]) -> None:
    assert Told(deployment("a"), deployment("b")).tell(story) == said


def test_calls_from_before_a_region_opened_do_not_open_its_deployments_too() -> None:
    told = Told(deployment("a"), deployment("b"))
    told.tell("a:f b:f a:f b:f a:f b:f a:f b:f a:f")
    for _ in range(20):
        event = told.event("b", "f", region_epoch=0)
        assert told.ward.record(event, told.now, 0.5) == []
    assert told.ward.breakers["b"].state == "closed"


def test_a_region_is_probed_through_one_deployment_and_comes_back_for_all() -> None:
    told = Told(deployment("a"), deployment("b"))
    told.tell("a:f b:f a:f b:f a:f b:f a:f b:f a:f")
    said = told.tell("4s a:s b:s a:s")
    assert said == [
        f"{REGION} half_open open_elapsed",
        *[f"{REGION} half_open probe_succeeded"] * (PROBES - 1),
        f"{REGION} closed probe_succeeded",
    ]
    assert told.moved[-1].change.ramp_until == told.now + 15.0
    # Within its ramp one failure is enough, and it is the region again.
    assert told.tell("b:f") == [f"{REGION} open ramp_failed"]


def test_a_probe_of_a_region_that_fails_says_nothing_of_the_deployment() -> None:
    told = Told(deployment("a"), deployment("b"))
    told.tell("a:f b:f a:f b:f a:f b:f a:f b:f a:f 4s")
    assert told.tell("a:f") == [f"{REGION} open probe_failed"]
    assert told.ward.breakers["a"].consecutive == 0


def test_a_refused_key_is_probed_once_and_back_at_once() -> None:
    told = Told(deployment("a"))
    told.tell("a:k1 a:k1")
    assert told.tell("30s a:k1") == ["a#key1 half_open open_elapsed", "a#key1 open probe_failed"]
    said = told.tell("60s a:s1")
    assert said == ["a#key1 half_open open_elapsed", "a#key1 closed probe_succeeded"]
    assert told.moved[-1].change.ramp_until == 0.0


def test_a_key_without_quota_is_out_until_the_provider_said_or_for_a_minute() -> None:
    told = Told(deployment("a"))
    told.tell("a:q1")
    assert told.moved[-1].change.until == 60.0
    assert told.tell("59s") == []
    assert told.tell("1s a:q1") == [
        "a#key1 half_open open_elapsed",
        "a#key1 open quota_exhausted",
    ]


def test_late_news_of_a_key_is_ignored() -> None:
    told = Told(deployment("a"))
    told.tell("a:k1 a:k1 30s")
    for what in ("s1", "k1", "q1"):
        assert told.ward.record(told.event("a", what, key_epoch=0), told.now, 0.5) == []
        assert told.ward.record(told.event("a", what, key_epoch=-1), told.now, 0.5) == []


def test_a_standby_keeps_keys_in_mind_and_acts_on_them_once_it_leads() -> None:
    told = Told(deployment("a"))
    for _ in range(2):
        told.ward.observe(told.event("a", "k1"), 0.0)
    (moved,) = told.ward.decide("a#key1", 0.0, 0.5)
    assert (moved.target, moved.change.cause) == ("a#key1", "key_refused")


def test_a_provider_region_is_what_is_called_at_one_address() -> None:
    settings = config(
        deployment("a"),
        deployment("b"),
        deployment("c", region="us"),
        deployment("d", url="http://other"),
        deployment("e", url="http://other"),
    )
    regions = {id_: scopes.region for id_, scopes in scopes_of(settings).items()}
    assert regions == {"a": REGION, "b": REGION, "c": "", "d": f"{REGION}/2", "e": f"{REGION}/2"}
    assert {kind_of(t) for t in targets_of(settings)} == {"deployment", "key", "region"}


def test_a_new_configuration_keeps_what_it_still_holds() -> None:
    told = Told(deployment("a"), deployment("b"))
    told.tell("a:k1 a:k1 b:f b:f b:f b:f b:f")
    made, gone = told.ward.cover(config(deployment("a"), deployment("c", url="http://c")), 1.0)
    assert (made, sorted(gone)) == (["c"], [REGION, "b"])
    assert told.ward.breakers["a#key1"].state == "open"


def test_the_one_who_probes_goes_through_nothing_else_in_trouble() -> None:
    told = Told(deployment("a"), deployment("b"))
    told.tell("a:k1 a:k1 a:m2 a:m2 a:m2 a:m2 a:m2")
    way = told.ward.way_to(REGION)
    assert way is not None
    assert way.deployment == "b"
    way = told.ward.way_to("a")
    assert way is not None
    assert (way.deployment, way.key) == ("a", 1)
    assert told.ward.permit(way, "a") == (1, 0, 0)
    assert told.ward.permit(way, REGION).deployment == -1
    assert told.ward.way_to("nobody") is None


class WardLaws(RuleBasedStateMachine):
    """Calls of any outcome end in any order, early and late, by the right epochs and by old ones."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Told(deployment("a"), deployment("b"), deployment("c", url="http://c"))
        self.last: dict[str, tuple[str, int]] = {}

    def note(self, moved: list[Moved]) -> None:
        for target, change in moved:
            state, epoch = self.last.get(target, ("closed", 0))
            assert (change.previous, change.epoch) == (state, epoch + 1), target
            self.last[target] = (change.state, change.epoch)

    @rule(
        one=st.sampled_from("abc"),
        what=st.sampled_from([*"sfcm", "k1", "k2", "q1", "q2", "s2"]),
        repeat=st.integers(1, 6),
    )
    def calls_of_these_epochs_end(self, one: str, what: str, repeat: int) -> None:
        for _ in range(repeat):
            event = self.told.event(one, what)
            self.note(self.told.ward.record(event, self.told.now, 0.5))

    @rule(
        one=st.sampled_from("abc"),
        what=st.sampled_from([*"sfcm", "k1", "q1"]),
        behind=st.integers(1, 4),
    )
    def a_call_of_old_epochs_ends(self, one: str, what: str, behind: int) -> None:
        epochs = {
            name: self.told.epoch(scope) - behind
            for name, scope in (
                ("epoch", one),
                ("key_epoch", f"{one}#key1"),
                ("region_epoch", REGION),
            )
        }
        before = dict(self.last)
        self.note(self.told.ward.record(self.told.event(one, what, **epochs), self.told.now, 0.5))
        assert self.last == before

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        self.told.now += seconds
        self.note(self.told.ward.tick(self.told.now))

    @invariant()
    def whatever_is_not_closed_wakes(self) -> None:
        states = {t: b.state for t, b in self.told.ward.breakers.items()}
        assert (self.told.ward.wake_at() is None) == (set(states.values()) == {"closed"})
        for target, (state, epoch) in self.last.items():
            assert (states[target], self.told.epoch(target)) == (state, epoch)

    @invariant()
    def only_two_deployments_share_a_region(self) -> None:
        assert self.told.ward.members(REGION) == ("a", "b")
        assert {t for t in self.told.ward.targets() if kind_of(t) == "region"} == {REGION}


TestWardLaws = WardLaws.TestCase
TestWardLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
