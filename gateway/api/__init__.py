"""The REST API, for people and for the command line."""
