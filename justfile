# What people do here, by name. Nothing needs this file: each recipe is one or two plain commands.

# Every check that continuous integration makes.
ci:
    .ci/run

# Lint and format, changing files.
fix:
    uv run ruff check --fix
    uv run ruff format

# Lint, format and types, changing nothing.
check:
    uv run ruff check
    uv run ruff format --check
    uv run mypy

# The test suite, or part of it: `just test tests/pure`.
test *ARGS:
    uv run pytest {{ARGS}}

# Slow fault drills.
drill *ARGS:
    uv run pytest -m drill {{ARGS}}

# The gateway on this machine.
up *ARGS:
    uv run breakwater up {{ARGS}}

# Measure: `just bench`, `just bench --quick one-process`.
bench *ARGS:
    uv run python -m ops.bench {{ARGS}}

# What single steps of the request path cost.
parts:
    uv run python -m ops.bench.parts

# The README's table from the newest saved figures.
table:
    uv run python -m ops.bench table

# Pin what is installed now.
pins:
    uv run python -m ops.pins

# The container image.
image:
    docker build --file ops/Dockerfile --tag breakwater-gateway .
