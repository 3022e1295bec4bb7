//! A virtual machine with Debian's kernel, for what the kernel of this machine lacks.
//!
//! ```text
//!  Job ──► scripts/build-vm.sh ──► kernel, initramfs ──► qemu ─┬─ first serial line: console, standard error
//!                                  (scripts/vm-init.sh in it)  └─ second: standard output, zero, exit code
//! ```
//!
//! The machine is emulated also where KVM is there: nested it hangs on some machines that offer it, and a
//! test must not depend on that. It has no disk and no network besides its own loopback, and goes with its
//! job. Each takes two processors and a gigabyte, so a test binary runs one at a time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::process::{Process, Scratch};

/// What a machine is to do.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// A script of the shell, run by root in an empty directory.
    pub script: &'a str,
    /// Programs of this machine that it calls besides those of a node, as [`built`] returns them.
    ///
    /// [`built`]: crate::program::built
    pub programs: &'a [PathBuf],
    /// A machine that takes longer is switched off. Booting is about 5 s of it.
    pub within: Duration,
}

/// What became of a job.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub end: End,
    /// What it printed to its standard output.
    pub output: String,
    /// What it printed to standard error, and what the kernel and qemu said.
    pub console: String,
    /// From power on to power off.
    pub took: Duration,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// Not in time: the machine was switched off.
    TimedOut,
    /// Not at all: the machine went down under it.
    Crashed,
}

/// Runs a job in a machine of its own.
///
/// # Panics
/// When there can be no such machine; what happens inside of one is in what is returned.
#[must_use]
pub fn run(job: &Job<'_>) -> Done {
    static ONE: Mutex<()> = Mutex::new(());
    // It guards the processors only, which a panic leaves as they are.
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new("cairn-vm");
    let path = |name: &str| scratch.path().join(name);
    let (script, initramfs) = (path("job"), path("initramfs"));
    std::fs::write(&script, format!("#!/bin/sh\n{}\n", job.script)).expect("the job is written");
    let kernel = build(&initramfs, &script, job.programs).join("vmlinuz");

    let (output, console, log) = (path("output"), path("console"), path("qemu.log"));
    let arguments = arguments(&kernel, &initramfs, [&console, &output]);
    let began = Instant::now();
    let mut machine = Process::start(Path::new(QEMU), &arguments, &log);
    while !machine.has_ended() && began.elapsed() < job.within {
        std::thread::sleep(LOOK_INTERVAL);
    }
    let in_time = machine.has_ended();
    drop(machine);
    let took = began.elapsed();

    let read = |path: &Path| {
        let octets = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&octets).into_owned()
    };
    let console = read(&console) + &read(&log);
    let (output, code) = split(&read(&output));
    let end = match code {
        Some(code) => End::Exited(code),
        None if in_time => End::Crashed,
        None => End::TimedOut,
    };
    Done { end, output, console, took }
}

/// Writes the initramfs of a job; returns the directory of its kernel.
fn build(initramfs: &Path, job: &Path, programs: &[PathBuf]) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-vm.sh");
    let mut command = Command::new(script);
    command.arg(initramfs).arg(job).args(programs).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().expect("scripts/build-vm.sh starts");
    assert!(output.status.success(), "scripts/build-vm.sh fails: see above");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

fn arguments(kernel: &Path, initramfs: &Path, serial: [&Path; 2]) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "-accel tcg,thread=multi -cpu max -smp 2 -m 1024",
        "-nodefaults -nographic -monitor none",
        // A kernel that panics reboots at once (-1), which is the end of the machine.
        "-no-reboot",
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned))
    .collect();
    let append = "console=ttyS0 panic=-1 loglevel=5";
    let pairs = [
        ("-kernel", kernel.display().to_string()),
        ("-initrd", initramfs.display().to_string()),
        ("-append", append.to_owned()),
        ("-serial", format!("file:{}", serial[0].display())),
        ("-serial", format!("file:{}", serial[1].display())),
    ];
    arguments.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    arguments
}

/// The output of a job, and its exit code where it got that far.
fn split(text: &str) -> (String, Option<i32>) {
    match text.rsplit_once('\0') {
        Some((output, code)) => (output.to_owned(), code.trim().parse().ok()),
        None => (text.to_owned(), None),
    }
}

const QEMU: &str = "qemu-system-x86_64";
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_may_hold_zeros_itself() {
        assert_eq!(split("a\n\x00b\x007\n"), ("a\n\x00b".to_owned(), Some(7)));
        assert_eq!(split("\x000\n"), (String::new(), Some(0)));
        assert_eq!(split("cut off"), ("cut off".to_owned(), None));
        // Switched off while it wrote the code.
        assert_eq!(split("a\0"), ("a".to_owned(), None));
    }
}
