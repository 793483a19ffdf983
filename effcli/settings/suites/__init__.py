"""The suites that come with `eff bench`, as TOML."""
