"""`breakwater cache …` against a gateway that serves, with embeddings by a model of its own."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.processes import Gateway, Simulator, once, until
from tests.e2e.test_keys import create, known

pytestmark = pytest.mark.nats

HOW = "How do I change the password of an account?"
ALIKE = "Please, how do I change the password of an account?"
DELETE = "How do I delete the password of an account?"
CACHE = "exact: 1h, sampled: true"


def config(simulator: Simulator) -> str:
    semantic = f"cache: {{{CACHE}, semantic: {{threshold: 0.85, shadow: 0}}}}"
    return f"""
providers:
  answers: {{wire: openai, base_url: "{simulator.base_url("cache-answers")}"}}
  vectors: {{wire: openai, base_url: "{simulator.base_url("cache-vectors")}"}}
models:
  main-model: {{deployments: [{{model: answers/m, id: main}}]}}
  clever-*:
    deployments: [{{model: answers/m, id: clever}}]
    {semantic}
  shadowed:
    deployments: [{{model: answers/m, id: shadowed}}]
    cache: {{{CACHE}, semantic: {{threshold: 0.85, shadow: 1}}}}
  of-user: {{deployments: [{{model: answers/m, id: of-user}}], cache: {{{CACHE}, scope: user}}}}
  of-key: {{deployments: [{{model: answers/m, id: of-key}}], cache: {{{CACHE}, scope: key}}}}
  vectors:
    deployments: [{{model: vectors/text-embedding-3-small, id: vectors}}]
embeddings: {{model: vectors}}
auth: {{mode: keys}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[Gateway]:
    simulator.script(lane="cache-answers", text="By the settings.")
    process = Gateway(Path(tmp_path_factory.mktemp("cache")), config=config(simulator))
    yield process
    process.end()


@pytest.fixture(scope="module")
def ann(place: Gateway) -> str:
    """A key that is bound to nobody."""
    _, key = create(place)
    known(place, key)
    return key


def ask(
    place: Gateway, key: str, model: str, text: str, cache: str = "on", **headers: str
) -> httpx.Response:
    return httpx.post(
        place.base_url + "/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": text}]},
        headers={
            "x-api-key": key,
            "breakwater-cache": cache,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
        trust_env=False,
        timeout=30,
    )


def cached(place: Gateway, key: str, model: str, text: str) -> str:
    """What the answer says of the cache where nothing may be called for it."""
    return ask(place, key, model, text, "only").headers["breakwater-cache"]


def run(place: Gateway, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = once(place.directory, "cache", *arguments, "--json", "--nats", place.nats)
    assert done.returncode == code, (done.stdout, done.stderr)
    said = done.stdout if code == 0 else done.stdout or done.stderr
    return [json.loads(line) for line in said.splitlines()]


def said(place: Gateway, *arguments: str, code: int = 0) -> str:
    done = once(place.directory, "cache", *arguments, "--nats", place.nats)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def request(tmp_path: Path, model: str, text: str, **fields: object) -> str:
    file = tmp_path / f"{uuid.uuid4().hex}.json"
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    file.write_text(json.dumps(body))
    return str(file)


def learn(place: Gateway, key: str, model: str) -> None:
    """The index learns of an answer after its caller has it; and embeddings take a breath at first."""

    def hit() -> bool:
        ask(place, key, model, HOW, "refresh")
        return cached(place, key, model, ALIKE) == "semantic"

    until(hit, "a hit by meaning", every_s=0.2)


def test_embeddings_through_the_gateway_give_a_hit_by_meaning_and_inspect_says_why(
    place: Gateway, ann: str, tmp_path: Path
) -> None:
    learn(place, ann, "clever-one")
    answer = ask(place, ann, "clever-one", ALIKE)
    assert answer.headers["breakwater-cache"] == "semantic"
    assert answer.json()["choices"][0]["message"]["content"] == "By the settings."
    id_ = answer.headers["breakwater-cache-id"]
    (entry,) = run(place, "inspect", id_)
    assert entry["kept"]["model"] == "clever-one"
    assert entry["kept"]["deployment"] == "clever"
    assert entry["meaning"]["embedder"] == "model:vectors"
    assert entry["meaning"]["served"] == pytest.approx(
        float(answer.headers["breakwater-similarity"]), abs=1e-3
    )
    shown = said(place, "inspect", id_)
    assert "By the settings" not in shown
    assert HOW not in shown
    assert "memory of" in shown
    texts = said(place, "inspect", id_, "--text", "--tenant", "default")
    assert "By the settings." in texts
    assert HOW in texts

    file = request(tmp_path, "clever-one", ALIKE)
    (why,) = run(place, "inspect", "--request", file)
    assert why["verdict"] == "semantic"
    assert why["keyed"]["configured"] == "clever-*"
    assert why["meaning"]["score"] >= why["meaning"]["threshold"] == 0.85
    assert why["meaning"]["candidates"][0]["question"]["digest"] == entry["kept"]["digest"]
    (miss,) = run(place, "inspect", "--request", request(tmp_path, "clever-one", DELETE))
    assert (miss["verdict"], miss["reason"]) == ("miss", "slots")
    assert miss["meaning"]["candidates"][0]["slots"]
    assert miss["mend"]
    lines = said(place, "inspect", "--request", request(tmp_path, "clever-one", DELETE))
    assert "miss, slots: the nearest question differs" in lines


def test_inspect_says_what_keeps_a_request_out_and_how_to_mend_it(
    place: Gateway, ann: str, tmp_path: Path
) -> None:
    hot = request(tmp_path, "clever-one", HOW, temperature=0.9)
    kept_out: tuple[tuple[tuple[str, ...], str], ...] = (
        (("--request", hot, "-H", "breakwater-cache=off"), "off"),
        (("--request", request(tmp_path, "of-user", HOW)), "no_user"),
        (("--request", request(tmp_path, "of-key", HOW), "-H", "breakwater-user: ann"), "no_key"),
        (("--request", request(tmp_path, "main-model", HOW, temperature=0.9)), "sampled"),
    )
    for arguments, reason in kept_out:
        (why,) = run(place, "inspect", *arguments)
        assert (why["verdict"], why["reason"]) == ("bypass", reason)
        assert why["means"].startswith(reason)
        assert why["mend"]
    mistakes: tuple[tuple[tuple[str, ...], int, str], ...] = (
        (("e" + "0" * 64,), 1, "nothing is kept under it"),
        (("nonsense",), 2, "an id is what breakwater-cache-id says"),
        (("--request", str(tmp_path / "missing.json")), 2, "cannot read"),
        ((), 2, "give either an ID or --request FILE"),
        (("e" + "0" * 64, "--text"), 2, "name it with --tenant"),
        (("--request", request(tmp_path, "nobody", HOW)), 1, "there is no model 'nobody'"),
        (("--request", hot, "--key", "key_000000000000"), 5, "there is no key of that id"),
        (("--request", hot, "--key", "bw-" + "x" * 43), 5, "unknown, expired or revoked"),
        (("--request", hot, "-H", "breakwater-cache=maybe"), 1, "must be on, off"),
    )
    for arguments, code, word in mistakes:
        (refused,) = run(place, "inspect", *arguments, code=code)
        assert word in refused["error"]["message"]
    assert ann


def test_stats_and_purge_count_what_is_there(place: Gateway, ann: str) -> None:
    learn(place, ann, "clever-two")
    found = run(place, "stats")
    assert [s["shard"] for s in found if s["shard"] != "exact"] == [str(n) for n in range(8)]
    assert sum(s["entries"] for s in found if s["shard"] == "exact") >= 1
    assert {s["embedder"] for s in found if s["shard"] != "exact"} == {"model:vectors"}
    assert "exact" in said(place, "stats")
    id_ = ask(place, ann, "clever-two", ALIKE).headers["breakwater-cache-id"]
    (gone,) = run(place, "purge", "--id", id_)
    assert (gone["answers"], gone["questions"]) == (1, 1)
    assert cached(place, ann, "clever-two", ALIKE) == "miss"
    assert cached(place, ann, "clever-two", HOW) == "miss"
    learn(place, ann, "clever-two")
    assert "0 answers and 0 questions" in said(place, "purge", "--tenant", "nobody")
    (gone,) = run(place, "purge", "--model", "clever-two")
    assert (gone["answers"], gone["questions"]) == (1, 1)
    assert cached(place, ann, "clever-two", ALIKE) == "miss"
    learn(place, ann, "clever-two")
    (gone,) = run(place, "purge", "--all")
    assert gone["answers"] >= gone["questions"] >= 1
    assert gone["shards"] == 8
    assert cached(place, ann, "clever-two", HOW) == "miss"
    (nothing,) = run(place, "purge", "--all")
    assert nothing["purged"] == 0


def test_the_labels_of_shadowed_hits_calibrate_the_running_cache(place: Gateway, ann: str) -> None:
    (none,) = run(place, "calibrate", "--live", "--model", "nobody", code=1)
    assert "no labels yet" in none["error"]["message"]
    number = 0

    def labelled() -> list[dict[str, Any]]:
        nonlocal number
        number += 1
        # No two are one question, and each follows one that is near.
        for start in ("How", "Please, how"):
            text = f"{start} do I mend the lamp of a {uuid.uuid5(uuid.NAMESPACE_DNS, 'x').hex[:1]}"
            ask(place, ann, "shadowed", f"{text} harbour {'very ' * number}soon?")
        done = once(
            *(place.directory, "cache", "calibrate", "--live", "--model", "shadowed"),
            *("--json", "--nats", place.nats, "--config", str(place.config_path)),
        )
        return [json.loads(done.stdout)] if done.returncode == 0 else []

    (found,) = until(labelled, "a label", every_s=0.3)
    assert found["embedder"] == found["configured_embedder"] == "model:vectors"
    assert found["report"]["pairs"] >= 1
    assert found["report"]["same"] == found["report"]["pairs"], "one text answers everything"
    assert "cannot certify" in found["verdict"]
    assert "by the embedder model:vectors" in said(place, "calibrate", "--live")


def test_pairs_are_judged_by_the_embedder_that_is_configured(
    place: Gateway, simulator: Simulator, tmp_path: Path
) -> None:
    before = simulator.lane("cache-vectors").get("started", 0)
    pairs = [
        {"a": f"How do I mend lamp {n}?", "b": f"Please, how do I mend lamp {n}?", "same": True}
        for n in range(320)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    (found,) = run(place, "calibrate", str(file), "--config", str(place.config_path))
    assert found["embedder"] == found["configured_embedder"] == "model:vectors"
    assert found["report"]["certificate"]["threshold"] is not None
    assert simulator.lane("cache-vectors")["started"] >= before + 10
    away = ("calibrate", str(file), "--config", str(place.config_path), "--json")
    done = once(place.directory, "cache", *away, "--nats", "nats://127.0.0.1:1")
    assert done.returncode == 4
    assert (
        "or judge by the local MiniLM with --local" in json.loads(done.stderr)["error"]["message"]
    )
    (refused,) = run(place, "calibrate", str(file), "--embedder", "model:nobody", code=1)
    assert "makes no embeddings" in refused["error"]["message"]


def test_a_file_warms_the_cache(place: Gateway, ann: str, tmp_path: Path) -> None:
    texts = [f"Warm {uuid.uuid4().hex}?" for _ in range(5)]
    rows = [
        {"request": {"model": "clever-one", "messages": [{"role": "user", "content": text}]}}
        for text in texts
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert run(place, "warm", str(file)) == [{"miss": 5, "hit": 0, "bypass": 0, "failed": 0}]
    assert run(place, "warm", str(file)) == [{"miss": 0, "hit": 5, "bypass": 0, "failed": 0}]
    assert {cached(place, ann, "clever-one", text) for text in texts} == {"hit"}


def test_what_is_kept_for_a_user_or_a_key_is_nobody_else_s(place: Gateway, tmp_path: Path) -> None:
    ann_id, ann = create(place, "--user", "ann")
    _, ann_too = create(place, "--user", "ann")
    bob_id, bob = create(place, "--user", "bob")
    for key in (ann, ann_too, bob):
        known(place, key)
    text = f"Whose is it, {uuid.uuid4().hex}?"
    for model in ("of-user", "of-key"):
        assert ask(place, ann, model, text).headers["breakwater-cache"] == "miss"
        assert cached(place, ann, model, text) == "hit"
        assert cached(place, bob, model, text) == "miss"
    assert cached(place, ann_too, "of-user", text) == "hit"
    assert cached(place, ann_too, "of-key", text) == "miss"
    # Who says that he is somebody else is refused, however he says it; the body's word counts for nothing.
    spoofed = ask(place, bob, "of-user", text, "only", breakwater_user="ann")
    assert (spoofed.status_code, spoofed.json()["error"]["code"]) == (403, "permission")
    body = {
        "model": "of-user",
        "user": "ann",
        "messages": [{"role": "user", "content": text}],
    }
    in_body = httpx.post(
        place.base_url + "/chat/completions",
        json=body,
        headers={"x-api-key": bob, "breakwater-cache": "only"},
        trust_env=False,
    )
    assert in_body.headers["breakwater-cache"] == "miss"
    file = request(tmp_path, "of-user", text)
    verdicts = {
        id_: run(place, "inspect", "--request", file, "--key", id_)[0]["verdict"]
        for id_ in (ann_id, bob_id)
    }
    assert verdicts == {ann_id: "hit", bob_id: "miss"}
    (refused,) = run(place, "inspect", "--request", file, "--key", bob_id, "--user", "ann", code=5)
    assert "bound to another value" in refused["error"]["message"]
