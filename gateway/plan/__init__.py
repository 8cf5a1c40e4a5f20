"""Plan what to execute at a commit: pure functions from facts to execution requests and reasons."""
