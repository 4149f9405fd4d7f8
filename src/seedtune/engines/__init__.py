"""What carries orders to clients and replies back."""
