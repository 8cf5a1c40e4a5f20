"""Tests of text from people and git."""
