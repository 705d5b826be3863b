//! Images of CDs by the real program, read back by the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use stead_driver::cd::{CdError, CdImages};
use stead_storage::Xorriso;

fn extract(image: &Path, to: &Path) {
    let out = Command::new("xorriso")
        .args(["-osirrox", "on", "-indev"])
        .arg(image)
        .args(["-extract", "/"])
        .arg(to)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn an_image_holds_the_files_under_the_label() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, image) = (dir.path().join("cd"), dir.path().join("image"));
    std::fs::create_dir_all(folder.join("left-over")).unwrap();
    let cds = Xorriso::new(&folder);
    assert!(!folder.exists(), "what an earlier process has left");
    let files =
        [("user-data", "#cloud-config\n"), ("openstack/latest/meta_data.json", "{}\n"), ("empty", "")];
    // As a storage spools it: there, and its owner's alone.
    std::fs::write(&image, b"").unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o600)).unwrap();
    cds.make("cidata", &files, &image).await.unwrap();
    let bytes = std::fs::read(&image).unwrap();
    // The primary volume descriptor.
    assert_eq!(&bytes[0x8001..0x8006], b"CD001");
    assert_eq!(&bytes[0x8028..0x8030], b"cidata  ");
    // Joliet's, whose letters have two bytes.
    let joliet = bytes.chunks_exact(2048).skip(16).find(|s| s[0] == 2 && &s[1..6] == b"CD001").unwrap();
    assert_eq!(&joliet[40..52], b"\0c\0i\0d\0a\0t\0a");
    let out = dir.path().join("out");
    extract(&image, &out);
    for (path, content) in files {
        assert_eq!(std::fs::read_to_string(out.join(path)).unwrap(), content, "{path}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left over");
    assert_eq!(std::fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_missing_program_is_named_with_its_package() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let missing = Xorriso::with_program(&dir.path().join("cd"), "no-such-xorrisofs");
    let e = missing.make("cidata", &[("a", "b")], &image).await.unwrap_err();
    assert!(matches!(e, CdError::Start { .. }));
    let said = e.to_string();
    assert!(
        said.contains("no-such-xorrisofs") && said.ends_with("is the package xorriso installed?"),
        "{said}"
    );
    let nowhere = Xorriso::new(&dir.path().join("cd"));
    let e = nowhere.make("cidata", &[("a", "b")], Path::new("/nowhere/image")).await.unwrap_err();
    assert!(e.to_string().contains("xorrisofs: "), "{e}");
    assert_eq!(std::fs::read_dir(dir.path().join("cd")).unwrap().count(), 0, "nothing is left over");
}
