/* Timers are left to the kernel; the guest gets the least that it can boot with. */
#include "xen.h"

#include <errno.h>

enum { XEN_MAJOR = 4, XEN_MINOR = 17, FIRST_TIMER_PORT = 16, HYPERCALL_MSR = 0x40000000 };
enum { HYPERCALL_VCPU_OP = 24, VCPUOP_STOP_PERIODIC_TIMER = 7 }; /* Xen's public headers */

static unsigned int vcpu_count;

static int set_up_vcpu(unsigned int vcpu)
{
    struct kvm_xen_vcpu_attr id = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, .u.vcpu_id = vcpu };
    struct kvm_xen_vcpu_attr timer = {
        .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER,
        .u.timer = { .port = FIRST_TIMER_PORT + vcpu, .priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL },
    };

    if (vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &id))
        return -1;
    return vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &timer);
}

int xen_set_up(unsigned int vcpus)
{
    struct kvm_xen_hvm_config config = {
        .flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
        .msr = HYPERCALL_MSR,
    };
    struct kvm_xen_hvm_attr version = {
        .type = KVM_XEN_ATTR_TYPE_XEN_VERSION,
        .u.xen_version = XEN_MAJOR << 16 | XEN_MINOR,
    };

    vcpu_count = vcpus;
    if (vm_ioctl(KVM_XEN_HVM_CONFIG, &config) || vm_ioctl(KVM_XEN_HVM_SET_ATTR, &version))
        return -1;
    for (unsigned int vcpu = 0; vcpu < vcpus; vcpu++)
        if (set_up_vcpu(vcpu))
            return -1;
    return 0;
}

int64_t xen_answer(const struct kvm_xen_exit *left)
{
    if (left->u.hcall.cpl)
        return -EPERM;
    if (left->u.hcall.input != HYPERCALL_VCPU_OP)
        return -ENOSYS;
    if ((uint32_t)left->u.hcall.params[1] >= vcpu_count)
        return -ENOENT;
    return (uint32_t)left->u.hcall.params[0] == VCPUOP_STOP_PERIODIC_TIMER ? 0 : -ENOSYS;
}
