"""Secrets at rest, and signed, expiring tokens."""
