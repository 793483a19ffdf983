"""What trained models teach a new one."""
