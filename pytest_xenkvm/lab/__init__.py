"""A real kernel with KVM and its Xen support, on any x86-64 Linux machine, without hardware virtualisation.

QEMU's TCG emulates AMD SVM, so a stock distribution kernel that boots under it has a real `/dev/kvm`. The
guest runs from memory: kernel modules and this Python environment are packed into an initramfs, at the paths
that they have on the host, and what a command writes comes back through virtio-serial ports.
"""
