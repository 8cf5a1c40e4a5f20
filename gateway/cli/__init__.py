"""The commands that ask a running gateway over its REST API, or play a provider's part."""
