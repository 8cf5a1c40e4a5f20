"""Sentences that the dashboard and the command line share."""

WAITS = "no broker has confirmed it yet; a gateway without PUSHGATE_AMQP_URL keeps it in its store"
"""Why an execution request is pending."""
