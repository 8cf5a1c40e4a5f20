"""Fakes of providers' REST APIs, each a real HTTP server on a free port."""
