"""The shell: settings in, method, table out. Torch is imported inside the commands' bodies."""
