"""The process: its socket, its HTTP server, its children."""
