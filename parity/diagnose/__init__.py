"""From the first difference to its cause: hypotheses, each confirmed by experiment."""
