// A VMM adapter in Go: the least VMM that conforms, over the protocol of docs/reference/adapter-protocol.md.
//
//	go build minimal.go
//	xenkvm replay @linux-boot --vmm cmd:./minimal
//
// Copy it, and put your VMM behind configure and onHypercall.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"math"
	"os"
	"syscall"
)

const (
	interceptHcall = 1 << 1 // KVM_XEN_HVM_CONFIG, flags
	evtchnSend     = 1 << 5

	xenVersion = 4 // attributes
	vcpuID     = 6
	timer      = 7

	hypercallVcpuOp         = 24 // Xen's public headers
	vcpuopStopPeriodicTimer = 7

	firstTimerPort = 16 // this VMM's own choice
)

// A message from the harness: the members of all those that this VMM gets.
type message struct {
	Type   string    `json:"type"`
	Vcpus  uint64    `json:"vcpus"`
	Cpl    int       `json:"cpl"`
	Input  uint64    `json:"input"`
	Params [6]uint64 `json:"params"`
	Ret    int64     `json:"ret"`
}

// An object to be sent; json writes its members in alphabetical order, which is fine.
type object map[string]any

var (
	in  = bufio.NewReaderSize(os.Stdin, 1<<16)
	out = json.NewEncoder(os.Stdout) // a line an object, unbuffered
)

// next reads a message; ok is false at the end of the input.
func next() (m message, ok bool) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return m, false
	}
	if err := json.Unmarshal(line, &m); err != nil {
		log.Fatalf("%v: %s", err, line)
	}
	return m, true
}

func say(m object) {
	if err := out.Encode(m); err != nil {
		log.Fatal(err)
	}
}

// must make a request that is not refused.
func must(request object) {
	say(request)
	if result, ok := next(); !ok || result.Ret < 0 {
		log.Fatalf("%v: %v", request, syscall.Errno(-result.Ret))
	}
}

func vcpuAttr(vcpu uint64, arg object) {
	must(object{"type": "ioctl", "name": "KVM_XEN_VCPU_SET_ATTR", "vcpu": vcpu, "arg": arg})
}

func configure(vcpus uint64) {
	must(object{"type": "ioctl", "name": "KVM_XEN_HVM_CONFIG", "arg": object{
		"flags": interceptHcall | evtchnSend, "msr": 0x40000000,
		"blob_addr_32": 0, "blob_addr_64": 0, "blob_size_32": 0, "blob_size_64": 0,
	}})
	must(object{"type": "ioctl", "name": "KVM_XEN_HVM_SET_ATTR", "arg": object{
		"type": xenVersion, "xen_version": 4<<16 | 17,
	}})
	for i := uint64(0); i < vcpus; i++ {
		vcpuAttr(i, object{"type": vcpuID, "vcpu_id": i})
		vcpuAttr(i, object{"type": timer, "timer": object{
			"port": firstTimerPort + i, "priority": uint32(math.MaxUint32), "expires_ns": 0,
		}})
	}
}

// onHypercall returns the guest's RAX. vCPU numbers and sub-ops of vcpu_op are 32 bits wide, whatever the
// registers hold.
func onHypercall(call message, vcpus uint64) int64 {
	switch {
	case call.Cpl > 0:
		return -int64(syscall.EPERM)
	case call.Input != hypercallVcpuOp:
		return -int64(syscall.ENOSYS)
	case uint64(uint32(call.Params[1])) >= vcpus:
		return -int64(syscall.ENOENT)
	case uint32(call.Params[0]) == vcpuopStopPeriodicTimer:
		return 0
	}
	return -int64(syscall.ENOSYS)
}

func main() {
	var vcpus uint64
	for m, ok := next(); ok && m.Type != "shutdown"; m, ok = next() {
		switch m.Type {
		case "start":
			say(object{"type": "hello", "protocol": 1, "name": "minimal-go"})
		case "configure":
			vcpus = m.Vcpus
			configure(vcpus)
			say(object{"type": "done"})
		case "hypercall":
			say(object{"type": "answer", "rax": onHypercall(m, vcpus)})
		default:
			log.Fatalf("unknown message %s", m.Type)
		}
	}
}
