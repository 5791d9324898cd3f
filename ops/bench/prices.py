"""CPU of pricing and of admission's estimates, and what the price table takes.

    python -m ops.bench.prices [--rounds 5]

Each figure is the best round of many calls, in µs; the table is measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from breakwater_gateway.config.model import Price
from breakwater_gateway.pricing.cost import cost_nano_usd, of_config, worst_case_nano_usd
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.pricing.tokens import Estimator, measure, tokenizer
from breakwater_protocol.chat import Usage

NOW: Final = 1_795_000_000.0
CALLS: Final = 20_000
_TABLE: Final = """
import json, time, tracemalloc
from breakwater_gateway.pricing import prices
start = time.perf_counter(); table = prices.shipped(); load = time.perf_counter() - start
start = time.perf_counter(); table.price_of("openai", "gpt-4o", 0.0); one = time.perf_counter() - start
start = time.perf_counter(); table.price_of("openrouter", "no-such", 0.0)
most = time.perf_counter() - start
start = time.perf_counter(); table.price_of("openrouter", "nor-this", 0.0)
miss = time.perf_counter() - start
tracemalloc.start(); whole = prices.Prices(prices.files("breakwater_gateway.pricing").joinpath(
    "data", "prices.json").read_bytes())
for each in list(whole._providers): whole.entry(each, "no-such")
print(json.dumps({"load": load, "one": one, "most": most, "miss": miss,
    "bytes": tracemalloc.get_traced_memory()[0]}))
"""


def body(size: int, *, picture: int = 0) -> bytes:
    content: object = "The ratchet slips under load. " * (size // 30)
    if picture:
        url = "data:image/png;base64," + "A" * picture
        content = [
            {"type": "text", "text": content},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    request = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 64}
    return json.dumps(request).encode()


def timed(what: Callable[[], object], rounds: int, calls: int = CALLS) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time_ns()
        for _ in range(calls):
            what()
        best = min(best, (time.process_time_ns() - start) / calls / 1000)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of prices and token estimates.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    prices, configured = shipped(), Price(150, 600)
    plain = prices.price_of("anthropic", "claude-sonnet-4-5", NOW)
    banded = prices.price_of("openai", "gpt-5.4", NOW)
    usage = Usage(12_000, 800, 9_000, 500, 300)
    estimator = Estimator()
    small, large = body(2_000), body(100_000)
    seen, pictured = body(2_000, picture=400_000), measure(small)
    for number in range(100):
        estimator.learn("m", pictured, 500 + number)
    figures: dict[str, tuple[Callable[[], object], int]] = {
        "price_of, one price": (
            lambda: prices.price_of("anthropic", "claude-sonnet-4-5", NOW),
            CALLS,
        ),
        "price_of, dated or tiered": (lambda: prices.price_of("openai", "gpt-5.4", NOW), CALLS),
        "price_of, by the hour": (
            lambda: prices.price_of("deepseek", "deepseek-v4-flash", NOW),
            CALLS,
        ),
        "of_config": (lambda: of_config(configured), CALLS),
        "cost_nano_usd": (lambda: cost_nano_usd(usage, plain), CALLS),
        "cost_nano_usd, bands": (lambda: cost_nano_usd(usage, banded), CALLS),
        "worst_case_nano_usd": (lambda: worst_case_nano_usd(12_000, 800, banded), CALLS),
        "measure, 2 kB of text": (lambda: measure(small), CALLS),
        "measure, 100 kB of text": (lambda: measure(large), 500),
        "measure, 400 kB picture": (lambda: measure(seen), 200),
        "estimate": (lambda: estimator.estimate("m", pictured), CALLS),
        "learn": (lambda: estimator.learn("m", pictured, 500), CALLS),
    }
    count = tokenizer()
    if count is not None:
        text = small.decode()
        figures["rs-bpe o200k, 2 kB"] = (lambda: count(text), 2_000)
    for name, (what, calls) in figures.items():
        print(f"{name:28} {timed(what, rounds, calls):9.3f} µs")
    done = subprocess.run(
        [sys.executable, "-c", _TABLE], check=True, capture_output=True, text=True
    )
    table = json.loads(done.stdout)
    print(f"{'table: load':28} {table['load'] * 1e3:9.3f} ms")
    print(f"{'first model of a provider':28} {table['one'] * 1e3:9.3f} ms")
    print(f"{'… of the largest, a miss':28} {table['most'] * 1e3:9.3f} ms")
    print(f"{'another miss there':28} {table['miss'] * 1e3:9.3f} ms")
    print(f"{'table: memory, all decoded':28} {table['bytes'] / 1e6:9.3f} MB")


if __name__ == "__main__":
    main()
