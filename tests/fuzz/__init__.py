"""Coverage-guided fuzzing: any bytes raise only our own exceptions."""
