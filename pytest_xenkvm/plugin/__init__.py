"""Floor 7: the pytest plugin xenkvm. May import report, rules and below, not cli."""
