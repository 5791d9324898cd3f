"""The configuration of the tour: one model for each thing that it shows, a simulated provider for each part."""

from typing import Final


def text(provider_url: str, static_answers: str) -> str:
    """`provider_url`: the simulator's root. `static_answers`: the path of the written answers."""
    lanes = (
        "main",
        "spare",
        "shaky",
        "steady",
        "kept",
        "clever",
        "small",
        "paid",
        "victim",
        "vectors",
    )
    providers = "\n".join(
        f'  {lane}: {{wire: openai, base_url: "{provider_url}/{lane}/v1"}}' for lane in lanes
    )
    return f"""
providers:
{providers}
models:
  main-model:                    # a request, a stream, a failover
    deployments:
      - {{model: main/m, id: main, order: 0}}
      - {{model: spare/m, id: spare, order: 1}}
    cache: {{exact: off}}
  shaky-model:                   # a breaker that opens, is probed once, and closes
    deployments:
      - {{model: shaky/m, id: shaky, order: 0}}
      - {{model: steady/m, id: steady, order: 1}}
    breaker: {{consecutive: 3, open: 1s, open_cap: 2s}}
    cache: {{exact: off}}
  kept-model:                    # identical requests are one; the next is a hit
    deployments: [{{model: kept/m, id: kept}}]
    cache: {{exact: 1h, sampled: true}}
  clever-model:                  # a question in other words
    deployments: [{{model: clever/m, id: clever}}]
    cache: {{exact: 1h, sampled: true, semantic: {{threshold: 0.85, ttl: 1h, shadow: 0}}}}
  paid-model:                    # a budget to its soft and hard limits
    deployments: [{{model: paid/m, id: paid, price: {{input: 1, output: 1}}}}]
    cache: {{exact: off}}
  laddered-model:                # each rung of the ladder
    deployments: [{{model: main/m, id: laddered}}]
    retry: {{attempts: 2, base: 20ms}}
    breaker: {{consecutive: 1000, min_requests: 100000}}
    cache: {{exact: 1s, sampled: true, stale_if_error: 1d}}
    ladder: [cache, stale, "simple_model:small-model", static, error]
  small-model:
    deployments: [{{model: small/m, id: small}}]
    breaker: {{consecutive: 1000, min_requests: 100000}}
    cache: {{exact: off}}
  victim-model:                  # a worker that is killed while it streams
    deployments: [{{model: victim/m, id: victim, pool: victim}}]
    retry: {{attempts: 1}}
    cache: {{exact: off}}
  embedder:
    deployments: [{{model: vectors/text-embedding-3-small, id: vectors}}]
embeddings: {{model: embedder}}
static_answers: {static_answers}
budgets:
  - {{account: "user:visitor", usd: 0.01, per: day, soft: [0.5]}}
"""


ANSWERS: Final = """
- questions: ["What are your opening hours?", "When are you open?"]
  answer: "We are open from nine to five, Monday to Friday."
"""
