"""The semantic cache's figures: `uv run python -m ops.bench.semantic [--skip-data] [--json FILE]`.

Speed: decisions in an index of 10,000 and of 100,000 vectors, inserts, and what the local embedder takes.
Quality: adversarial pairs, two streams of questions, and how often certificates break their promise. The
data is found through BREAKWATER_SHARED, the vectors are kept in $XDG_CACHE_HOME; what is not there is
said and left out.
"""

import os

# One thread of BLAS, as an actor among others has: set before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import json
import lzma
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from breakwater_gateway.cache.decision import decide, ineligible
from breakwater_gateway.cache.embed.local import LocalEmbedder
from breakwater_gateway.cache.embed.minilm import MiniLM, is_available
from breakwater_gateway.cache.semantic import Entry, Index, Lists, Vector, unit
from breakwater_gateway.cache.slots import conflict
from breakwater_gateway.cache.threshold import GRID, certify
from breakwater_gateway.cli.cache_vectors import vectors_of
from breakwater_gateway.config.model import Semantic
from breakwater_gateway.runtime.telemetry import get_log

POLICY: Final = Semantic(threshold=0.85, shadow=0.0)
"""One rule for all of the data below."""
STREAM: Final = 12_000
RESAMPLES: Final = 200
DRAWN: Final = 3_000
"""Pairs of a resample."""
TARGETS: Final = (0.01, 0.02)


def entry(number: int, text: str, answer: int = 0) -> Entry:
    return Entry(
        id=str(number),
        tenant="t",
        partition="p",
        model="m",
        text=text,
        digest="d",
        vector=b"",
        answer=str(answer),
        answer_vector=b"",
        answer_id=answer,
        cost_nano_usd=None,
        answer_bytes=100,
        at=0.0,
        expires_at=1e12,
    )


def cpu_ms(work: Callable[[], object], times: int = 200) -> float:
    """CPU of one call: what it takes where nobody else wants the core."""
    took = []
    for _ in range(times):
        begun = time.thread_time()
        work()
        took.append(1e3 * (time.thread_time() - begun))
    return statistics.median(took)


def best_ms(work: Callable[[], object], times: int = 200, rounds: int = 5) -> tuple[float, float]:
    """p50 and p95 of one call, in the quietest round: noise of a shared machine only ever adds."""
    found = []
    for _ in range(rounds):
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            work()
            took.append(1e3 * (time.perf_counter() - begun))
        took.sort()
        found.append((statistics.median(took), took[int(0.95 * times)]))
    return min(found)


def say(name: str, value: str, wanted: str, *, good: bool) -> bool:
    print(f"{'ok ' if good else 'NOT'} {name}: {value} (wanted {wanted})", flush=True)
    return good


def filled(rows: int, rng: np.random.Generator) -> tuple[Index, float]:
    """An index of clustered vectors, and the p50 of an insert in µs."""
    centres = rng.standard_normal((rows // 20, 384)).astype(np.float32)
    index, took = Index(10**12), []
    for number in range(rows):
        raw = centres[number % len(centres)] + 0.6 * rng.standard_normal(384).astype(np.float32)
        made, vector = entry(number, f"How do I do the thing number {number}?"), unit(raw, None)
        assert vector is not None
        begun = time.perf_counter()
        index.add(made, vector)
        took.append(time.perf_counter() - begun)
    return index, 1e6 * statistics.median(took)


def one_decision(index: Index, queries: Sequence[Vector], turn: list[int]) -> object:
    turn[0] += 1
    number = turn[0] % len(queries)
    found = index.search("p", queries[number])
    text = f"How could I do the thing number {turn[0]}?"
    return decide(
        found.candidates,
        text=text,
        tenant="t",
        now=0.0,
        threshold=0.85,
        policy=POLICY,
        draw=0.5,
    )


def speed() -> list[bool]:
    rng, good = np.random.default_rng(1), []
    for rows, limit in ((10_000, 1.5), (100_000, 3.0)):
        index, insert_us = filled(rows, rng)
        begun = time.perf_counter()
        vectors = index.to_list("p")
        if vectors is not None:
            index.adopt("p", Lists(vectors))
            print(f"    lists over {rows} rows made in {time.perf_counter() - begun:.2f} s")
        queries = [
            made
            for each in rng.standard_normal((200, 384)).astype(np.float32)
            if (made := unit(each, None)) is not None
        ]
        work = partial(one_decision, index, queries, [0])
        p50, p95 = best_ms(work)
        value = f"{p50:.2f} ms p50, {p95:.2f} ms p95, {cpu_ms(work):.2f} ms of CPU"
        good.append(
            say(f"decision over {rows} x 384", value, f"<= {limit} ms p50", good=p50 <= limit)
        )
        good.append(
            say(f"insert into {rows}", f"{insert_us:.1f} µs p50", "<= 50 µs", good=insert_us <= 50)
        )
    return good


async def with_embedding() -> bool:
    """A question no one has asked before: the embedder's process, then a decision over 10,000 rows."""
    index, _ = filled(10_000, np.random.default_rng(2))
    local = LocalEmbedder("minilm", get_log())
    await local.start()
    try:
        async with asyncio.timeout(120):
            await local.ready.wait()
        best = (1e9, 1e9)
        for turn in range(5):
            took = []
            for number in range(100):
                text = f"How do I change the {number}th setting of device {turn} at home?"
                begun = time.perf_counter()
                made = await local.embed(text, "t")
                vector = None if isinstance(made, str) else unit(made, None)
                assert vector is not None
                one_decision(index, [vector], [0])
                took.append(1e3 * (time.perf_counter() - begun))
            took.sort()
            best = min(best, (took[50], took[95]))
    finally:
        await local.close()
    value = f"{best[0]:.2f} ms p50, {best[1]:.2f} ms p95"
    return say(
        "decision over 10000 x 384 with local embedding", value, "<= 6 ms p50", good=best[0] <= 6
    )


def adversarial(shared: Path) -> bool:
    lines = (shared / "data" / "pairs" / "adversarial.jsonl").read_text(encoding="utf-8")
    pairs = [json.loads(line) for line in lines.splitlines()]
    texts = sorted({pair[side] for pair in pairs for side in "ab"})
    vectors = dict(zip(texts, vectors_of(texts, "minilm"), strict=True))
    served = {True: 0, False: 0}
    of = {True: 0, False: 0}
    eligible = {True: 0, False: 0}
    for pair in pairs:
        a, b, same = pair["a"], pair["b"], bool(pair["same"])
        of[same] += 1
        hit = float(vectors[a] @ vectors[b]) >= 0.85 and not conflict(a, b, "strict")
        served[same] += hit
        eligible[same] += hit and ineligible(b, tools=False, temperature=0.0) is None
    hits, traps = 100 * served[True] / of[True], 100 * served[False] / of[False]
    print(
        f"    of those also eligible (no volatile or personal words): {eligible[True]} and"
        f" {eligible[False]}"
    )
    return say(
        f"adversarial pairs ({of[True]} should hit, {of[False]} traps)",
        f"{hits:.1f} % served, {traps:.2f} % of traps ({served[False]}) served wrong",
        ">= 45 % at <= 1.5 %",
        good=hits >= 45 and traps <= 1.5,
    )


def questions(shared: Path, name: str) -> list[tuple[str, str]]:
    path = shared / "data" / "intents" / f"{name}.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = {row["text"]: row["intent"] for row in map(json.loads, file)}
    found = list(rows.items())
    np.random.default_rng(0).shuffle(found)
    return [(str(text), str(intent)) for text, intent in found[:STREAM]]


def stream(shared: Path, name: str) -> bool:
    """Each question once, in a random order; a hit is wrong when the intents differ, and is not stored."""
    rows = questions(shared, name)
    vectors = vectors_of([text for text, _ in rows], "minilm")
    numbers = {intent: number for number, intent in enumerate(sorted({i for _, i in rows}), 1)}
    index = Index(10**12)
    hits = wrong = 0
    for place, ((text, intent), raw) in enumerate(zip(rows, vectors, strict=True)):
        vector = unit(raw, None)
        assert vector is not None
        found = index.search("p", vector)
        decision = decide(
            found.candidates,
            text=text,
            tenant="t",
            now=0.0,
            threshold=POLICY.threshold,
            policy=POLICY,
            draw=0.5,
        )
        if decision.reason is None and decision.best is not None:
            hits += 1
            wrong += decision.best.answer != numbers[intent]
        else:
            index.add(entry(place, text, numbers[intent]), vector)
    share, bad = 100 * hits / len(rows), 100 * wrong / max(1, hits)
    return say(
        f"stream {name} ({len(rows)} distinct questions)",
        f"{share:.1f} % hits, {bad:.2f} % of them wrong",
        ">= 30 % at <= 1 %",
        good=share >= 30 and bad <= 1,
    )


def would_be_hits(shared: Path, name: str) -> list[tuple[float, bool]]:
    """Score and truth of each question's nearest earlier one that no slot keeps apart."""
    rows = questions(shared, name)
    vectors = np.array(vectors_of([text for text, _ in rows], "minilm"), np.float32)
    numbers = {intent: number for number, intent in enumerate(sorted({i for _, i in rows}), 1)}
    index, found = Index(10**12), []
    policy = Semantic(threshold=0.0, shadow=0.0)
    for place, (text, intent) in enumerate(rows):
        vector = unit(vectors[place], None)
        assert vector is not None
        near = index.search("p", vector)
        decision = decide(
            near.candidates,
            text=text,
            tenant="t",
            now=0.0,
            threshold=0.0,
            policy=policy,
            draw=0.5,
        )
        if decision.reason is None and decision.best is not None:
            found.append((decision.score, decision.best.answer == numbers[intent]))
        index.add(entry(place, text, numbers[intent]), vector)
    return found


def certificates(shared: Path, name: str, target: float) -> bool:
    """Certify on a resample, judge by all: the whole set is the world that resamples are drawn from."""
    pool = would_be_hits(shared, name)
    scores = np.array([score for score, _ in pool])
    same = np.array([truth for _, truth in pool])
    truth = {at: float((~same[scores >= at]).mean()) for at in GRID if (scores >= at).any()}
    rng, broken, given, thresholds = np.random.default_rng(5), 0, 0, []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(pool), DRAWN)
        s, t = scores[drawn], same[drawn]
        counts = [(at, int((s >= at).sum()), int((~t[s >= at]).sum())) for at in reversed(GRID)]
        threshold = certify(counts, target).threshold
        if threshold is not None:
            given += 1
            thresholds.append(threshold)
            broken += truth[threshold] > target
    middle = statistics.median(thresholds) if thresholds else float("nan")
    return say(
        f"certificates for {100 * target:g} % from {DRAWN} labels of {name}",
        f"{broken} of {RESAMPLES} broke their bound; {given} were given, threshold {middle:.2f} in"
        " the middle",
        "<= 5 %",
        good=broken <= 0.05 * RESAMPLES,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-data", action="store_true", help="Only what is timed.")
    given: Any = parser.parse_args(arguments)
    good = speed()
    why = is_available()
    if why:
        print(f"    left out what needs the local embedder: {why}")
        return 0 if all(good) else 1
    model = MiniLM()
    p50, p95 = best_ms(lambda: model.embed("How do I change the settings of my router at home?"))
    print(f"    one embedding: {p50:.2f} ms p50, {p95:.2f} ms p95")
    good.append(asyncio.run(with_embedding()))
    shared = Path(os.environ.get("BREAKWATER_SHARED", ""))
    if given.skip_data or not (shared / "data" / "pairs").is_dir():
        print("    left out what needs data: set BREAKWATER_SHARED")
        return 0 if all(good) else 1
    good.append(adversarial(shared))
    for name in ("banking77", "clinc150"):
        good.append(stream(shared, name))
        good += [certificates(shared, name, target) for target in TARGETS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
