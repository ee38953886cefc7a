"""The suite that judges a host: every behaviour of KVM's Xen support as an active probe."""
