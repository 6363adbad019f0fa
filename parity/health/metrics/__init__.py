"""Figures of one layer's taps, in NumPy alone: what any implementation shows can be measured."""
