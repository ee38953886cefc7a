//! A VMM adapter in Rust: the least VMM that conforms.
//!
//!     rustc -O minimal.rs
//!     xenkvm replay @linux-boot --vmm cmd:./minimal
//!
//! The protocol is docs/reference/adapter-protocol.md. The harness sends flat JSON, one message a line,
//! without spaces: a scan for "key": finds every member.
//! Copy it, and put your VMM behind `configure` and `on_hypercall`.

use std::io::{stdin, stdout, BufRead, Write};
use std::process::exit;

const EPERM: i64 = 1;
const ENOENT: i64 = 2;
const ENOSYS: i64 = 38;

// KVM's: flags of KVM_XEN_HVM_CONFIG, attributes
const INTERCEPT_HCALL: u32 = 1 << 1;
const EVTCHN_SEND: u32 = 1 << 5;
const XEN_VERSION: u32 = 4;
const VCPU_ID: u32 = 6;
const TIMER: u32 = 7;
// Xen's
const HYPERCALL_VCPU_OP: u64 = 24;
const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
// This VMM's own choice
const FIRST_TIMER_PORT: u32 = 16;

/// A message from the harness.
struct Message(String);

impl Message {
    /// The next one; None at the end of the input.
    fn next() -> Option<Message> {
        let mut line = String::new();
        match stdin().lock().read_line(&mut line) {
            Ok(length) if length > 0 => Some(Message(line)),
            _ => None,
        }
    }

    fn kind(&self) -> &str {
        self.0.split('"').nth(3).unwrap_or("")
    }

    /// What follows a member's name.
    fn after(&self, key: &str) -> &str {
        let name = format!("\"{key}\":");
        match self.0.split_once(name.as_str()) {
            Some((_, rest)) => rest,
            None => fail(&format!("no {name} in {}", self.0)),
        }
    }

    /// The integers of a member that is one, or a list of them; `i128` holds every u64 and every errno.
    fn numbers(&self, key: &str) -> Vec<i128> {
        let rest = self.after(key);
        let end = if rest.starts_with('[') { ']' } else { ',' };
        let list = rest.trim_start_matches('[').split([end, '}']).next();
        let entries = list.unwrap_or("").split(',');
        entries.filter_map(|digits| digits.parse().ok()).collect()
    }

    fn number(&self, key: &str) -> i128 {
        self.numbers(key)[0]
    }
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(1)
}

/// Write a message.
fn say(message: &str) {
    let mut out = stdout().lock();
    let written = writeln!(out, "{message}").and_then(|()| out.flush());
    written.unwrap_or_else(|_| exit(1));
}

/// Make an ioctl that must not be refused; `rest` are the members behind its name.
fn ioctl(name: &str, rest: &str) {
    say(&format!(r#"{{"type":"ioctl","name":"{name}",{rest}}}"#));
    match Message::next() {
        Some(result) if result.number("ret") >= 0 => (),
        Some(result) => fail(&format!("{name} {rest}: {}", result.number("ret"))),
        None => exit(1),
    }
}

fn set_vcpu_attr(vcpu: u32, arg: &str) {
    let rest = format!(r#""vcpu":{vcpu},"arg":{{{arg}}}"#);
    ioctl("KVM_XEN_VCPU_SET_ATTR", &rest);
}

fn configure(vcpus: u32) {
    let (flags, msr) = (INTERCEPT_HCALL | EVTCHN_SEND, 0x4000_0000);
    let no_blobs = r#""blob_addr_32":0,"blob_addr_64":0,"blob_size_32":0,"blob_size_64":0"#;
    let config = format!(r#""arg":{{"flags":{flags},"msr":{msr},{no_blobs}}}"#);
    ioctl("KVM_XEN_HVM_CONFIG", &config);
    let version = format!(r#""type":{XEN_VERSION},"xen_version":{}"#, 4 << 16 | 17);
    ioctl("KVM_XEN_HVM_SET_ATTR", &format!(r#""arg":{{{version}}}"#));
    for index in 0..vcpus {
        set_vcpu_attr(index, &format!(r#""type":{VCPU_ID},"vcpu_id":{index}"#));
        let (port, priority) = (FIRST_TIMER_PORT + index, u32::MAX);
        let timer = format!(r#""port":{port},"priority":{priority},"expires_ns":0"#);
        set_vcpu_attr(index, &format!(r#""type":{TIMER},"timer":{{{timer}}}"#));
    }
}

/// The guest's RAX. vCPU numbers and sub-ops of vcpu_op are 32 bits wide, whatever the registers hold.
fn on_hypercall(call: &Message, vcpus: u32) -> i64 {
    let params = call.numbers("params");
    if call.number("cpl") > 0 {
        -EPERM
    } else if call.number("input") as u64 != HYPERCALL_VCPU_OP {
        -ENOSYS
    } else if params[1] as u32 >= vcpus {
        -ENOENT
    } else if params[0] as u32 == VCPUOP_STOP_PERIODIC_TIMER {
        0
    } else {
        -ENOSYS
    }
}

fn main() {
    let mut vcpus = 0;
    while let Some(message) = Message::next() {
        match message.kind() {
            "start" => say(r#"{"type":"hello","protocol":1,"name":"minimal-rust"}"#),
            "configure" => {
                vcpus = message.number("vcpus") as u32;
                configure(vcpus);
                say(r#"{"type":"done"}"#);
            }
            "hypercall" => {
                let rax = on_hypercall(&message, vcpus);
                say(&format!(r#"{{"type":"answer","rax":{rax}}}"#));
            }
            "shutdown" => return,
            other => fail(&format!("unknown message {other}")),
        }
    }
}
