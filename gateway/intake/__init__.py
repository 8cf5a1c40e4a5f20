"""The webhook endpoint: read a bounded body, verify the sender, store the delivery, and only then answer."""
