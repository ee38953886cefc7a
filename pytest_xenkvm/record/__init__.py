"""Recordings of real VMs on this host: KVM's own events and kprobe events, through tracefs, into traces."""
