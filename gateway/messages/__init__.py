"""The wire contract: the messages that Pushgate publishes."""
