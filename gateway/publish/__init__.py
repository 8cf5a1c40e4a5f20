"""From stored execution requests to the broker's confirmed keeping."""
