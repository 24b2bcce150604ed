"""The families of noise: the distribution of each, and how it is drawn."""
