"""Plan what to execute at a commit. Pure: facts in, execution requests and reasons out."""
