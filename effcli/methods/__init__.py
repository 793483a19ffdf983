"""The verbs: how each command's run differs from the plain one."""
