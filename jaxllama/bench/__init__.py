"""How fast the model is, side by side with others and with what this machine could do at best."""
