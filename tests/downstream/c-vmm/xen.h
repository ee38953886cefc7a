/* The Xen part of the VMM, and what it stands on. */
#ifndef XEN_H
#define XEN_H

#include <linux/kvm.h>
#include <stdint.h>

/* As ioctl(2) on the VM's file and on a vCPU's: -1 and errno, if the kernel refuses. */
int vm_ioctl(unsigned long request, void *argument);
int vcpu_ioctl(unsigned int vcpu, unsigned long request, void *argument);

/* Before the guest runs. -1 and errno, if the kernel refuses. */
int xen_set_up(unsigned int vcpus);

/* The guest's RAX, for a KVM_EXIT_XEN of type KVM_EXIT_XEN_HCALL. */
int64_t xen_answer(const struct kvm_xen_exit *left);

#endif
