"""Recorded traffic replayed through the gateway's dialects: `uv run python -m ops.fidelity DIR`.

`rows` reads recordings, `replay` sends each to the checks of its API (a module each), `report` counts.
What makes two bodies say the same is in `equivalence` and, per dialect, in its module: the tests use it too.
"""
