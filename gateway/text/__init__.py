"""Text of people and of git, made safe to show and to store, and sentences about wrong input."""
