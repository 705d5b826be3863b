//! What tests need of this machine: a network of their own, and a word where they are left out.

/// Leaves a test out, and says so.
pub fn skip(why: &str) {
    let strict = std::env::var_os("STEAD_STRICT").is_some_and(|v| v == "1");
    assert!(!strict, "skipped although STEAD_STRICT=1: {why}");
    eprintln!("SKIP {}: {why}", std::thread::current().name().unwrap_or("test"));
}

/// Runs this test again in a network of its own.
pub fn in_own_network(name: &str) -> bool {
    if std::env::var_os("STEAD_OWN_NETWORK").is_some() {
        return true;
    }
    let run = std::process::Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("STEAD_OWN_NETWORK", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    if said.contains("Operation not permitted") {
        skip("a network of its own needs privileges");
    } else {
        assert!(run.status.success(), "{said}");
        eprint!("{said}");
    }
    false
}

/// What a program says; its complaint where it fails.
pub fn told_by(program: &str, args: &str) -> Result<String, String> {
    let out = std::process::Command::new(program).args(args.split(' ')).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}

/// What `ip` says.
pub fn ip(args: &str) -> String {
    told_by("ip", args).unwrap_or_else(|e| panic!("ip {args}: {e}"))
}
