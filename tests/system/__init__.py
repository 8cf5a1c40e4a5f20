"""The whole gateway, from the webhook to the broker, and what can go wrong around it."""
