"""`uv run python -m ops.bench [--quick] [--json] [SCENARIO…]` and `uv run python -m ops.bench table`."""

import os
import sys
from datetime import UTC, datetime

import click
import msgspec
from ops.bench import results
from ops.bench.figures import table
from ops.bench.processes import Failed
from ops.bench.scenarios import SCENARIOS, Bench


@click.command()
@click.argument("names", metavar="[SCENARIO…]", nargs=-1)
@click.option("--quick", is_flag=True, help="One short round each; printed, never saved.")
@click.option("--json", "as_json", is_flag=True, help="The whole result as one JSON object.")
def main(names: tuple[str, ...], *, quick: bool, as_json: bool) -> None:
    """Measure the SCENARIOs (default: all), or render the README's `table` from saved results."""
    if names == ("table",):
        try:
            results.write_readme()
        except (ValueError, OSError) as error:
            sys.exit(str(error))
        return
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise click.UsageError(
            f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}"
        )
    bench = Bench(quick=quick)
    # This process only waits and reads; it must not do so on the gateway's core.
    os.sched_setaffinity(0, bench.cores.harness)
    failed = False
    for name in names or tuple(SCENARIOS):
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            SCENARIOS[name](bench)
        except Failed as error:
            failed = True
            bench.problems.append(f"{name}: {error}")
    found = results.result(bench, now=datetime.now(UTC))
    print(msgspec.json.encode(found).decode() if as_json else table(found.rows))
    for problem in found.problems:
        print(f"suspect: {problem}", file=sys.stderr)
    if found.rows and not quick:
        print(f"saved as {results.save(found)}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
