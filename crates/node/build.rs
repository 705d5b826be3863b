//! Builds again when the console's files have changed: they are embedded.

fn main() {
    println!("cargo::rerun-if-changed=../../web/dist");
}
