"""Replay and judge KVM/Xen hypercall traces. Stands below every floor: imports nothing of the package."""
