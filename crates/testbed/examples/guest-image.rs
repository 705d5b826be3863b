//! Makes the HTTP guest's image and prints its path, for trying it by hand:
//! `qemu-system-x86_64 -m 256 -drive file=PATH,format=raw,if=virtio -nographic`.

fn main() -> anyhow::Result<()> {
    let path = stead_testbed::guest::image::http_guest(&|step| eprintln!("{step}"))?;
    println!("{}", path.display());
    Ok(())
}
