"""What happens behind the webhook: fetch, plan, reconcile, clean up."""
