/* What the VMM stands on in a test: pytest-xenkvm's adapter protocol, instead of /dev/kvm. */
#include "xen.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *line; /* the message under way */
static size_t room;

static int next_message(void)
{
    return getline(&line, &room, stdin) > 0;
}

static int is(const char *type)
{
    char head[32];
    int length = snprintf(head, sizeof(head), "{\"type\":\"%s\"", type);

    return !strncmp(line, head, length);
}

/* What stands behind a member's colon. */
static const char *member(const char *key)
{
    char name[32];
    const char *found;

    snprintf(name, sizeof(name), "\"%s\":", key);
    found = strstr(line, name);
    if (!found) {
        fprintf(stderr, "no %s in %s", name, line);
        exit(EXIT_FAILURE);
    }
    return found + strlen(name);
}

static uint64_t number(const char *key)
{
    return strtoull(member(key), NULL, 10);
}

/* Make the ioctl whose request has been begun: send the structure's bytes, and take them back. */
static int finish_ioctl(unsigned long request, void *argument)
{
    unsigned char *bytes = argument;
    unsigned int size = _IOC_SIZE(request);
    const char *data;
    int64_t result;

    printf("\"request\":%lu,\"data\":\"", request);
    for (unsigned int i = 0; i < size; i++)
        printf("%02x", bytes[i]);
    printf("\"}\n");
    fflush(stdout);
    if (!next_message() || !is("result"))
        exit(EXIT_FAILURE);
    result = (int64_t)number("ret");
    if (result < 0) {
        errno = -result;
        return -1;
    }
    data = member("data") + 1;
    for (unsigned int i = 0; i < size; i++)
        sscanf(data + 2 * i, "%2hhx", &bytes[i]);
    return result;
}

int vm_ioctl(unsigned long request, void *argument)
{
    printf("{\"type\":\"raw_ioctl\",");
    return finish_ioctl(request, argument);
}

int vcpu_ioctl(unsigned int vcpu, unsigned long request, void *argument)
{
    printf("{\"type\":\"raw_ioctl\",\"vcpu\":%u,", vcpu);
    return finish_ioctl(request, argument);
}

static int64_t on_hypercall(void)
{
    struct kvm_xen_exit left = { .type = KVM_EXIT_XEN_HCALL };
    const char *at = member("params");

    left.u.hcall.longmode = number("longmode");
    left.u.hcall.cpl = number("cpl");
    left.u.hcall.input = number("input");
    for (int i = 0; i < 6; i++) {
        char *end;

        left.u.hcall.params[i] = strtoull(at + 1, &end, 10); /* behind "[" or "," */
        at = end;
    }
    return xen_answer(&left);
}

int main(void)
{
    while (next_message() && !is("shutdown")) {
        if (is("start")) {
            printf("{\"type\":\"hello\",\"protocol\":1,\"name\":\"small VMM in C\"}\n");
        } else if (is("configure")) {
            if (xen_set_up(number("vcpus"))) {
                perror("xen_set_up");
                return EXIT_FAILURE;
            }
            printf("{\"type\":\"done\"}\n");
        } else if (is("hypercall")) {
            printf("{\"type\":\"answer\",\"rax\":%" PRId64 "}\n", on_hypercall());
        } else {
            fprintf(stderr, "unknown message: %s", line);
            return EXIT_FAILURE;
        }
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}
