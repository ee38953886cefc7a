"""Floor 7: the command xenkvm. May import rules, report and below, not plugin."""
