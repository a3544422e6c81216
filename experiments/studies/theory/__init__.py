"""The theory of the noise of SGD compared with simulated chains."""
