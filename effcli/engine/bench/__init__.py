"""Many runs that are compared as one experiment, and what is shown of them."""
