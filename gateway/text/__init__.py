"""Make text from people and git safe to show and store; describe invalid input."""
