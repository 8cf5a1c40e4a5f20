"""The background work: fetch, plan, reconcile, clean up."""
