"""Floor 5: conformance rules that judge observations. May import replay and below."""
