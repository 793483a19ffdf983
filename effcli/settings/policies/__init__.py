"""The weights of learned policies, as TOML."""
