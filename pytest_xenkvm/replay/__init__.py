"""Floor 4: a trace driven through a host and a VMM, as observations. May import vmm and below."""
