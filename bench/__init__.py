"""What Pushgate costs, always next to a yardstick in the same run: `python -m bench`."""
