"""`breakwater demo`: a narrated tour on the simulator that checks itself and ends by itself."""

import asyncio
import tempfile
import time
from pathlib import Path

import click

from breakwater_gateway.cli import output


@click.command(
    help="A tour on the simulator: a request, a failover, a breaker, the cache, a budget, the ladder, a killed"
    " worker. Needs no key and no network. Exit 1 if a step does not show what it should."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a step.")
def demo(as_json: bool) -> None:
    import uvloop

    from breakwater_gateway.runtime.logs import configure_logging

    configure_logging("console", "error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_tour(as_json=as_json))
    raise SystemExit(code)


async def _tour(*, as_json: bool) -> int:
    from breakwater_gateway.cli.demo import config
    from breakwater_gateway.cli.demo.place import TourFailed, opened
    from breakwater_gateway.cli.demo.steps import STEPS, walked
    from breakwater_protocol import BreakwaterError

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="breakwater-demo-") as folder:
        directory = Path(folder)
        answers = directory / "answers.yaml"
        answers.write_text(config.ANSWERS, encoding="utf-8")
        if not as_json:
            output.say("Starting NATS, simulated providers and every actor …")
        try:
            async with opened(directory, lambda url: config.text(url, str(answers))) as place:
                number = 0
                async for step, lines in walked(place):
                    number += 1
                    if as_json:
                        output.say_json({"step": step.title, "shown": lines})
                        continue
                    output.say(f"\n{number}. {step.title}. {step.tells}")
                    for line in lines:
                        output.say(f"   {line}")
        except (TourFailed, BreakwaterError) as error:
            output.fail(str(error), code=output.FAILED, as_json=as_json)
    took = time.monotonic() - began
    if as_json:
        output.say_json({"steps": len(STEPS), "seconds": round(took, 1)})
    else:
        output.say(f"\nAll {len(STEPS)} steps showed what they should, in {took:.0f} s.")
    return 0
