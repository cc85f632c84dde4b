"""What generates and what scores: the protocols in `base`, and one module for each way to run them."""
