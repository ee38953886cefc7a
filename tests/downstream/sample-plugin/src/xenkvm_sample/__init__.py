"""A sample plugin for pytest-xenkvm."""
