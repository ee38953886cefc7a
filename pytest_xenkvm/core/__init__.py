"""Floor 1: the ABI's state machine, without I/O and without a clock of its own. May import abi."""
