"""What is done with whole traces: compare, cut, merge and shrink them.

Each module works on headers and streams of events; files and terminals are the command line's.
"""
