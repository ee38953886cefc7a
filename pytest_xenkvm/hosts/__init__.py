"""Floor 2: what plays the kernel, emulated or real. May import core, cpu, trace and abi."""
