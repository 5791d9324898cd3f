"""The contract of Breakwater: what a client, a subscriber or another language needs."""
