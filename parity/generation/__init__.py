"""`generate` compared with what the reference says to each token that it wrote."""
