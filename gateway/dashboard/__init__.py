"""The dashboard: HTML pages over the REST API."""
