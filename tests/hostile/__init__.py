"""Attacks on a gateway that runs, beside a connection whose pushes must go on: `python -m tests.hostile`."""
