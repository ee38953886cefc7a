"""A small VMM that runs Xen guests on KVM."""
