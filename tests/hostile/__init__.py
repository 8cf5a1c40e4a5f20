"""Attacks on a running gateway, with a connection whose pushes must go on: `python -m tests.hostile`."""
