"""The command line: the service's commands, and clients of its REST API."""
