"""The process and its HTTP server."""
