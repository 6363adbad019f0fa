"""How far one tap of a run is from the reference, and what may be: NumPy alone."""
