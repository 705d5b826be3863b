//! A word to the service manager that has started this program: one datagram, as `sd_notify(3)` sends it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// The variable that names the service manager's socket.
pub const SOCKET: &str = "NOTIFY_SOCKET";
/// The program is ready to serve.
pub const READY: &str = "READY=1";
/// It has begun to end.
pub const STOPPING: &str = "STOPPING=1";

/// Tells the service manager, if there is one. A word that does not arrive is no reason to stop: the service manager gives
/// the service up by itself.
pub fn notify(word: &str) {
    if let Some(socket) = std::env::var_os(SOCKET)
        && let Err(e) = send(Path::new(&socket), word)
    {
        crate::log(&format!("could not tell the service manager '{word}': {e}"));
    }
}

/// A path that begins with `@` is a name that no file has.
fn send(socket: &Path, word: &str) -> io::Result<()> {
    let address = match socket.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // The service manager reads them all at once; if it does not, this must not wait for it.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(word.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_word_is_one_datagram_whichever_way_the_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("stead-notify-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, named) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), format!("@{name}").into()),
        ] {
            manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            send(&named, READY).unwrap();
            let mut word = [0; 64];
            let n = manager.recv(&mut word).unwrap();
            assert_eq!(&word[..n], b"READY=1");
        }
        assert!(send(&dir.path().join("nobody"), READY).is_err());
    }
}
