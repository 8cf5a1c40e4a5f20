"""One push from the webhook to the runner, on this machine, explained step by step: `python -m demo`."""
