"""What steers a run from outside: how far a step may go, how fast, and what it reads."""
