"""Coverage-guided fuzzing: whatever bytes come in, no exception but our own."""
