"""What Pushgate costs, always beside a yardstick in the same run: `python -m bench`."""
