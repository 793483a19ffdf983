"""Many runs as one experiment: arms, seeds, and what may be said about them."""
