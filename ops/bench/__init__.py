"""The bench: starts everything itself, drives it, and prints ratios against a direct call.

`python -m ops.bench [--quick] [--json] [SCENARIO…]` measures; `python -m ops.bench table` renders the
README's table from the newest saved figures. The load generator and the provider are processes of
their own, pinned away from the gateway where the machine has two cores.
"""
