"""The REST APIs of git providers. See `operation` for how a module is written."""
