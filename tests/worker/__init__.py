"""What happens behind the webhook."""
