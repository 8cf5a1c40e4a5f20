"""Pushgate: from a provider's webhook to an execution request that names exactly one commit."""
