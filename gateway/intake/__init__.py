"""The door: a bounded body, a proven sender, a durable record, and only then an answer."""
