"""What a process of each role is made of. Read with gateway/app.py, from top to bottom."""
