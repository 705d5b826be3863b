//! Builds the test guests' own parts (`guests/`), so that a program made from this crate carries them and needs no
//! assembler or compiler where it runs: the boot code of both guests, and the static programs of the HTTP guest and of the
//! machine.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let from_cargo =
        |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let out = from_cargo("OUT_DIR");
    let guests = from_cargo("CARGO_MANIFEST_DIR").join("../../guests");
    for source in
        ["http/boot.s", "http/guestd.rs", "http/record.rs", "http/udhcpc", "machine/init.rs", "tick/tick.s"]
    {
        println!("cargo:rerun-if-changed={}", guests.join(source).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    assemble(&guests.join("http/boot.s"), &out, "boot.bin", &[]);
    assemble(&guests.join("tick/tick.s"), &out, "tick.bin", &[]);
    assemble(&guests.join("tick/tick.s"), &out, "writes.bin", &["--defsym", "WRITES=1"]);
    compile(&guests.join("http/guestd.rs"), &out, "guestd");
    compile(&guests.join("machine/init.rs"), &out, "machine");
}

/// A static program that needs nothing but the standard library.
fn compile(source: &Path, out: &Path, name: &str) {
    run(Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition",
            "2024",
            "--crate-name",
            name,
            "-D",
            "warnings",
            "-C",
            "target-feature=+crt-static",
        ])
        .args(["-C", "opt-level=2", "-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(out.join(name))
        .arg(source));
}

/// Assembles 16-bit code that runs at 0x7c00.
fn assemble(source: &Path, out: &Path, name: &str, symbols: &[&str]) {
    let object = out.join(name).with_extension("o");
    run(Command::new("as").arg("--32").args(symbols).arg("-o").arg(&object).arg(source));
    run(Command::new("ld")
        .args(["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-e", "_start", "-o"])
        .arg(out.join(name))
        .arg(&object));
}

fn run(command: &mut Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the test guests: {command:?} ended with {status}"),
        Err(e) => {
            panic!("building the test guests: {command:?}: {e}; is it installed? (binutils, `make deps`)")
        }
    }
}
