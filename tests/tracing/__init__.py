"""Tests of spans and of their export."""
