"""Numbers and structure layouts of the KVM/Xen ABI. No behaviour lives here."""
