"""What rounding may cost on any machine, where what this one measures does not say enough."""
