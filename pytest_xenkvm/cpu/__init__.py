"""Floor 1: guest code on a CPU. May import abi."""
