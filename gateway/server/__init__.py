"""The server process: its socket, its HTTP server and its child processes."""
