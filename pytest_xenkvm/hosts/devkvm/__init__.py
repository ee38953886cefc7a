"""A real /dev/kvm as host."""
