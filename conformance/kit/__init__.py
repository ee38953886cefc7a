"""What probes are written with: build a VM, do something, look."""
