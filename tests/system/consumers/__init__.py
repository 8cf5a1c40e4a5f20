"""Consumers as the documentation of their AMQP libraries has them, extended by the protocol of runners.

They use nothing of examples/: what they need is in docs/message.md.
"""
