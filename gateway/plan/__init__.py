"""What a commit is asked to execute. Pure: facts in, execution requests and reasons out."""
