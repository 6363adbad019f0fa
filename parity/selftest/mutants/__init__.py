"""A population of faults that nobody chose: the source of `jaxllama`, edited by general rules."""
