"""The main job once, on this machine, told step by step: `python -m demo`."""
