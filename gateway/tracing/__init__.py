"""Traces: the ids of spans, and the spans of what Pushgate does with a delivery."""
