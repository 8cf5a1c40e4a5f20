"""Publish stored execution requests and events to RabbitMQ, until the broker confirms them."""
