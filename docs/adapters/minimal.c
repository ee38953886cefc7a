/*
 * A VMM adapter in C: the least VMM that conforms, over the protocol of docs/reference/adapter-protocol.md.
 *
 *     cc -o minimal minimal.c
 *     xenkvm replay @linux-boot --vmm cmd:./minimal
 *
 * The harness sends flat JSON, one message a line, without spaces: a scan for "key": finds every member.
 * Copy it, and put your VMM behind configure() and on_hypercall().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INTERCEPT_HCALL = 1 << 1, EVTCHN_SEND = 1 << 5 };              /* KVM_XEN_HVM_CONFIG, flags */
enum { XEN_VERSION = 4, VCPU_ID = 6, TIMER = 7 };                     /* attributes */
enum { HYPERCALL_VCPU_OP = 24, VCPUOP_STOP_PERIODIC_TIMER = 7 };      /* Xen's public headers */
enum { FIRST_TIMER_PORT = 16 };                                       /* this VMM's own choice */

static char *line; /* the message under way */
static size_t room;
static uint32_t vcpus;

static int next_line(void)
{
    return getline(&line, &room, stdin) > 0;
}

static int is(const char *type)
{
    static const char head[] = "{\"type\":\"";
    size_t length = strlen(type);

    return !strncmp(line, head, sizeof(head) - 1) && !strncmp(line + sizeof(head) - 1, type, length)
        && line[sizeof(head) - 1 + length] == '"';
}

/* The integer of member `key`, or the entry `index` of its list; a negative one wraps, as casts expect. */
static uint64_t number(const char *key, int index)
{
    char name[32];
    const char *at;

    snprintf(name, sizeof(name), "\"%s\":", key);
    at = strstr(line, name);
    if (!at) {
        fprintf(stderr, "no %s in %s", name, line);
        exit(EXIT_FAILURE);
    }
    at += strlen(name);
    at += *at == '[';
    while (index-- > 0)
        at = strchr(at, ',') + 1;
    return strtoull(at, NULL, 10);
}

/* Write a message, which ends with a newline. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fflush(stdout);
}

/* Read the result of the request just made; `what` must not be refused. */
static void must(const char *what)
{
    if (!next_line() || !is("result"))
        exit(EXIT_FAILURE);
    if ((int64_t)number("ret", 0) < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-(int)number("ret", 0)));
        exit(EXIT_FAILURE);
    }
}

static void configure(void)
{
    vcpus = number("vcpus", 0);
    say("{\"type\":\"ioctl\",\"name\":\"KVM_XEN_HVM_CONFIG\",\"arg\":{\"flags\":%d,\"msr\":%d,"
        "\"blob_addr_32\":0,\"blob_addr_64\":0,\"blob_size_32\":0,\"blob_size_64\":0}}\n",
        INTERCEPT_HCALL | EVTCHN_SEND, 0x40000000);
    must("KVM_XEN_HVM_CONFIG");
    say("{\"type\":\"ioctl\",\"name\":\"KVM_XEN_HVM_SET_ATTR\",\"arg\":{\"type\":%d,\"xen_version\":%d}}\n",
        XEN_VERSION, 4 << 16 | 17);
    must("XEN_VERSION");
    for (uint32_t i = 0; i < vcpus; i++) {
        say("{\"type\":\"ioctl\",\"name\":\"KVM_XEN_VCPU_SET_ATTR\",\"vcpu\":%" PRIu32
            ",\"arg\":{\"type\":%d,\"vcpu_id\":%" PRIu32 "}}\n", i, VCPU_ID, i);
        must("VCPU_ID");
        say("{\"type\":\"ioctl\",\"name\":\"KVM_XEN_VCPU_SET_ATTR\",\"vcpu\":%" PRIu32
            ",\"arg\":{\"type\":%d,\"timer\":{\"port\":%" PRIu32 ",\"priority\":%" PRIu32
            ",\"expires_ns\":0}}}\n",
            i, TIMER, FIRST_TIMER_PORT + i, UINT32_MAX);
        must("TIMER");
    }
}

/* The guest's RAX. vCPU numbers and sub-ops of vcpu_op are 32 bits wide, whatever the registers hold. */
static int64_t on_hypercall(void)
{
    if (number("cpl", 0))
        return -EPERM;
    if (number("input", 0) != HYPERCALL_VCPU_OP)
        return -ENOSYS;
    if ((uint32_t)number("params", 1) >= vcpus)
        return -ENOENT;
    return (uint32_t)number("params", 0) == VCPUOP_STOP_PERIODIC_TIMER ? 0 : -ENOSYS;
}

int main(void)
{
    while (next_line() && !is("shutdown")) {
        if (is("start")) {
            say("{\"type\":\"hello\",\"protocol\":1,\"name\":\"minimal-c\"}\n");
        } else if (is("configure")) {
            configure();
            say("{\"type\":\"done\"}\n");
        } else if (is("hypercall")) {
            say("{\"type\":\"answer\",\"rax\":%" PRId64 "}\n", on_hypercall());
        } else {
            fprintf(stderr, "unknown message: %s", line);
            return EXIT_FAILURE;
        }
    }
    return EXIT_SUCCESS;
}
