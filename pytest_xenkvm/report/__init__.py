"""Floor 6: verdicts and divergences as documents. May import rules and below."""
