"""Drills use the end-to-end fixtures: one simulator for the session, gateways of their own."""

from tests.e2e.conftest import simulator, workplace

__all__ = ["simulator", "workplace"]
