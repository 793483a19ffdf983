"""What a machine offers, found out without changing it. `eff doctor` shows it."""
